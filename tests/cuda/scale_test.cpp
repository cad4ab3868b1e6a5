#include <tuple>
#include <utility>

#include "aliquot/device_kernels.h"
#include "aliquot/kernels.h"
#include "tests/cuda/device_test.h"

namespace aliquot::test {
namespace {

using CudaScale = OnDeviceWith<std::tuple<DType, std::size_t>>;

TEST_P(CudaScale, GivesTheHostKernelsBitsAtAnyAlignment) {
  const auto [dtype, count] = GetParam();
  for (const std::size_t offset : {0, 1}) {
    std::vector<float> expected = numbers(count, 1, dtype);
    const DeviceArray<std::byte> data(encoded(expected, dtype), stream(), offset * size_of(dtype));
    const DeviceArray<float> factor = one_of(0.3F, stream());
    scale(expected, 0.3F);
    cuda::scale(data.data(), dtype, count, factor.data(), stream());
    EXPECT_TRUE(same_bits(data.values(), encoded(expected, dtype))) << "offset " << offset;
  }
}

// Remainders of the four-element loads, and one array longer than the grid.
INSTANTIATE_TEST_SUITE_P(Counts, CudaScale,
                         testing::Combine(testing::Values(DType::fp32, DType::bf16),
                                          testing::Values(0, 1, 3, 4, 5, 7, 1023, 5'000'001)));

using CudaScaleOfBf16 = OnDevice;

TEST_F(CudaScaleOfBf16, KeepsToTheRulesOfTheFormat) {
  const std::vector<float> values{-0.0F, infinity, quiet_nan, 0x1.FEp127F, 0x1p-133F, 1 + 0x1p-7F};
  const std::vector<float> halves{-0.0F, infinity, quiet_nan, 0x1.FEp126F, 0.0F, 0.5F + 0x1p-8F};
  const std::vector<float> doubled{-0.0F, infinity, quiet_nan, infinity, 0x1p-132F, 2 + 0x1p-6F};
  for (const auto& [by, expected] : {std::pair(0.5F, halves), std::pair(2.0F, doubled)}) {
    const DeviceArray<std::byte> data(encoded(values, DType::bf16), stream());
    const DeviceArray<float> factor = one_of(by, stream());
    cuda::scale(data.data(), DType::bf16, values.size(), factor.data(), stream());
    EXPECT_TRUE(same_bits(data.values(), encoded(expected, DType::bf16))) << by;
  }
}

TEST_F(CudaScaleOfBf16, IsNotOfFp16) {
  EXPECT_THROW(cuda::scale(nullptr, DType::fp16, 0, nullptr, stream()), InvalidArgument);
}

}  // namespace
}  // namespace aliquot::test
