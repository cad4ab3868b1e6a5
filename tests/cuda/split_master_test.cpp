#include "aliquot/split_master.h"

#include "aliquot/device_kernels.h"
#include "tests/cuda/device_test.h"

namespace aliquot::test {
namespace {

using CudaSplitMaster = OnDevice;

TEST_F(CudaSplitMaster, GivesTheHostsHalves) {
  constexpr std::size_t count = 1'300'001;
  std::vector<float> masters(count);  // steps through all exponents and both signs; NaN among them
  for (std::size_t i = 0; i < count; ++i) masters[i] = std::bit_cast<float>(static_cast<std::uint32_t>(i * 3301));
  std::vector<std::uint16_t> high(count), low(count);
  for (std::size_t i = 0; i < count; ++i) {
    high[i] = split_master(masters[i]).high;
    low[i] = split_master(masters[i]).low;
  }

  const DeviceArray<float> given(masters, stream());
  const DeviceArray<std::uint16_t> params(std::vector<std::uint16_t>(count), stream());
  const DeviceArray<std::uint16_t> lows(std::vector<std::uint16_t>(count), stream());
  cuda::split_masters(given.data(), params.data(), lows.data(), count, stream());

  EXPECT_TRUE(same_bits(params.values(), high));
  EXPECT_TRUE(same_bits(lows.values(), low));
}

}  // namespace
}  // namespace aliquot::test
