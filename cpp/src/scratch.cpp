#include "scratch.h"

#include "aliquot/error.h"

namespace aliquot {

Scratch::Scratch(Device device)
    : of_device_(device.type == Device::Type::cpu ? nullptr : device_memory(device)),
      memory_(of_device_ ? *of_device_ : host_memory()), used_(device) {}

Scratch::~Scratch() {
  try {
    used_.synchronize();
  } catch (const Error&) {
    return;  // the device has failed, or the runtime is gone: nothing is under way
  }
}

std::byte* Scratch::begin(std::size_t bytes, Stream stream) {
  if (bytes > buffer_.bytes()) {
    used_.synchronize();
    buffer_ = {};
    buffer_ = Buffer(memory_, bytes);
  } else {
    used_.block(stream);
  }
  return buffer_.data();
}

}  // namespace aliquot
