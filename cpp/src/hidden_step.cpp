#include "hidden_step.h"

#include "aliquot/error.h"

namespace aliquot {

HiddenStep::HiddenStep(Device device)
    : device_(device), stream_(device, Priority::low), decided_(device), done_(device) {}

HiddenStep::~HiddenStep() {
  try {
    await();
  } catch (const Error&) {
    return;  // the device has failed, or the runtime is gone: nothing is under way
  }
}

Stream HiddenStep::begin(Stream stream) {
  decided_.record(stream);
  decided_.block(stream_.get());
  taker_ = stream;
  under_way_ = true;
  return stream_.get();
}

void HiddenStep::await(Stream stream) {
  if (!under_way_) return;
  done_.record(stream_.get());
  done_.block(stream);
  if (stream.handle != taker_.handle) return;
  under_way_ = false;
  kept_.clear();
}

void HiddenStep::await() {
  synchronize(stream_.get());
  under_way_ = false;
  kept_.clear();
}

void HiddenStep::renew() {
  await();
  for (Event* event : {&decided_, &done_}) *event = Event(device_);
}

}  // namespace aliquot
