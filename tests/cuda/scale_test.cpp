#include "aliquot/device_kernels.h"
#include "aliquot/kernels.h"
#include "tests/cuda/device_test.h"

namespace aliquot::test {
namespace {

using CudaScale = OnDeviceWith<std::size_t>;

TEST_P(CudaScale, GivesTheHostKernelsBitsAtAnyAlignment) {
  for (const std::size_t offset : {0, 1}) {
    std::vector<float> expected = numbers(GetParam(), 1);
    const DeviceArray<float> data(expected, stream(), offset), factor = one_of(0.3F, stream());
    scale(expected, 0.3F);
    cuda::scale(data.data(), expected.size(), factor.data(), stream());
    EXPECT_TRUE(same_bits(data.values(), expected)) << "offset " << offset;
  }
}

// Remainders of the four-element loads, and one array longer than the grid.
INSTANTIATE_TEST_SUITE_P(Counts, CudaScale, testing::Values(0, 1, 3, 4, 1023, 5'000'001));

}  // namespace
}  // namespace aliquot::test
