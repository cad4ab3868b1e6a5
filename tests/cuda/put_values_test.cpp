#include "aliquot/put_values.h"

#include <bit>
#include <cstdint>
#include <vector>

#include "aliquot/split_master.h"
#include "tests/cuda/device_test.h"

namespace aliquot::test {
namespace {

using CudaPutValues = OnDevice;

std::vector<std::uint32_t> any_bits(std::size_t count) {
  std::vector<std::uint32_t> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<std::uint32_t>(i) * 2654435761U;
  return values;
}

template <typename T>
std::byte* bytes_of(const DeviceArray<T>& array) {
  return reinterpret_cast<std::byte*>(array.data());
}

TEST_F(CudaPutValues, PutsPlainOnesAndHalves) {
  const auto masters = any_bits(300'001), few = any_bits(5);
  std::vector<std::uint16_t> high(masters.size()), low(masters.size());
  for (std::size_t i = 0; i < masters.size(); ++i) {
    const SplitMaster halves = split_master(std::bit_cast<float>(masters[i]));
    high[i] = halves.high;
    low[i] = halves.low;
  }
  const DeviceArray<std::uint32_t> plain(std::vector<std::uint32_t>(masters.size()), stream(), 1);
  const DeviceArray<std::uint32_t> small(std::vector<std::uint32_t>(few.size()), stream());
  const DeviceArray<std::uint16_t> upper(std::vector<std::uint16_t>(masters.size()), stream(), 3);
  const DeviceArray<std::uint16_t> lower(std::vector<std::uint16_t>(masters.size()), stream(), 5);
  const Put puts[] = {{std::as_bytes(std::span(masters)), bytes_of(plain)},
                      {std::as_bytes(std::span(few)), bytes_of(small)},
                      {std::as_bytes(std::span(masters)), bytes_of(upper), bytes_of(lower)}};
  for (const std::size_t threads : {1U, 3U}) {
    const ValuePutter putter(gpu, threads);
    putter.put(puts);
    EXPECT_TRUE(same_bits(plain.values(), masters));
    EXPECT_TRUE(same_bits(small.values(), few));
    EXPECT_TRUE(same_bits(upper.values(), high));
    EXPECT_TRUE(same_bits(lower.values(), low));
  }
  ValuePutter(gpu, 4).put({});
}

}  // namespace
}  // namespace aliquot::test
