#include "aliquot/put_values.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
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

void put_plain(const Step& step, const Staging& staging) {
  const auto values = step.values();
  std::memcpy(staging.data(), values.data(), values.size());
  copy_async(step.put->data + step.begin, staging.data(), values.size(), staging.stream.get());
}

void put_halves(const Step& step, const Staging& staging) {
  const auto values = step.values();
  const std::span masters(reinterpret_cast<const float*>(values.data()), values.size() / sizeof(float));
  auto* const high = reinterpret_cast<std::uint16_t*>(staging.data());
  auto* const low = high + masters.size();
  split_masters(masters, high, low);
  copy_async(step.put->data + step.begin / 2, high, values.size() / 2, staging.stream.get());
  copy_async(step.put->low + step.begin / 2, low, values.size() / 2, staging.stream.get());
}

}  // namespace

void put_values(std::span<const Put> puts, Device device, std::size_t threads) {
  const std::vector<Step> steps = steps_of(puts);
  std::vector<std::optional<Staging>> stagings(workers_for(steps.size(), threads));
  side_by_side(steps.size(), stagings.size(), [&](std::size_t number, std::size_t worker) {
    const DeviceGuard guard(device);
    std::optional<Staging>& staging = stagings[worker];
    if (!staging) staging.emplace(device);
    const Step& step = steps[number];
    (step.put->low == nullptr ? put_plain : put_halves)(step, *staging);
    synchronize(staging->stream.get());
  });
}

}  // namespace aliquot
