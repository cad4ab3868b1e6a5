#include "aliquot/put_values.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "aliquot/split_master.h"
#include "side_by_side.h"
#include "staging.h"

namespace aliquot {
namespace {

/// What is put at a time.
struct Step {
  const Put* put;
  std::size_t begin;  ///< byte of the values

  std::span<const std::byte> values() const {
    return put->values.subspan(begin, std::min(Staging::bytes, put->values.size() - begin));
  }
};

std::vector<Step> steps_of(std::span<const Put> puts) {
  std::vector<Step> steps;
  for (const Put& put : puts) {
    for (std::size_t begin = 0; begin < put.values.size(); begin += Staging::bytes) steps.push_back({&put, begin});
  }
  return steps;
}

std::span<const float> masters_in(std::span<const std::byte> values) {
  return {reinterpret_cast<const float*>(values.data()), values.size() / sizeof(float)};
}

void put_on_host(const Step& step) {
  const auto values = step.values();
  if (step.put->low == nullptr) {
    std::memcpy(step.put->data + step.begin, values.data(), values.size());
    return;
  }
  const auto half = [&](std::byte* data) { return reinterpret_cast<std::uint16_t*>(data + step.begin / 2); };
  split_masters(masters_in(values), half(step.put->data), half(step.put->low));
}

void put_plain(const Step& step, const Staging& staging) {
  const auto values = step.values();
  std::memcpy(staging.data(), values.data(), values.size());
  copy_async(step.put->data + step.begin, staging.data(), values.size(), staging.stream.get());
}

void put_halves(const Step& step, const Staging& staging) {
  const auto values = step.values();
  const auto masters = masters_in(values);
  auto* const high = reinterpret_cast<std::uint16_t*>(staging.data());
  auto* const low = high + masters.size();
  split_masters(masters, high, low);
  copy_async(step.put->data + step.begin / 2, high, values.size() / 2, staging.stream.get());
  copy_async(step.put->low + step.begin / 2, low, values.size() / 2, staging.stream.get());
}

void put_on_device(const Step& step, const Staging& staging) {
  (step.put->low == nullptr ? put_plain : put_halves)(step, staging);
  synchronize(staging.stream.get());
}

}  // namespace

ValuePutter::ValuePutter(Device device, std::size_t threads)
    : device_(device), threads_(workers_for(threads, threads)) {
  if (device.type == Device::Type::cpu) return;
  const DeviceGuard guard(device);
  while (stagings_.size() < threads_) stagings_.push_back(std::make_unique<Staging>(device));
}

ValuePutter::~ValuePutter() = default;

void ValuePutter::put(std::span<const Put> puts) const {
  const std::vector<Step> steps = steps_of(puts);
  side_by_side(steps.size(), threads_, [&](std::size_t number, std::size_t worker) {
    if (stagings_.empty()) return put_on_host(steps[number]);
    const DeviceGuard guard(device_);
    put_on_device(steps[number], *stagings_[worker]);
  });
}

}  // namespace aliquot
