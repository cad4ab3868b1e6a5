#include "cuda/scale.h"

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include "aliquot/device.h"
#include "aliquot/kernels.h"

namespace aliquot {
namespace {

using DeviceFloats = std::unique_ptr<float, decltype(&cudaFree)>;

DeviceFloats to_device(const std::vector<float>& host) {
  void* data = nullptr;
  EXPECT_EQ(cudaMalloc(&data, host.size() * sizeof(float)), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(data, host.data(), host.size() * sizeof(float), cudaMemcpyHostToDevice), cudaSuccess);
  return {static_cast<float*>(data), cudaFree};
}

std::vector<float> ramp(std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = 0.1F * static_cast<float>(i) - 3.0F;
  return values;
}

class CudaScale : public testing::TestWithParam<std::size_t> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device";
    ASSERT_EQ(cudaStreamCreate(&stream_), cudaSuccess);
  }
  void TearDown() override {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  cudaStream_t stream_ = nullptr;
};

TEST_P(CudaScale, GivesTheHostKernelsBitsAndTouchesNothingBehind) {
  const std::size_t count = GetParam();
  std::vector<float> expected = ramp(count + 1);
  const DeviceFloats data = to_device(expected);
  const DeviceFloats factor = to_device({0.3F});
  scale(std::span(expected).first(count), 0.3F);

  cuda::scale(data.get(), count, factor.get(), Stream{stream_});
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);

  std::vector<float> actual(count + 1);
  ASSERT_EQ(cudaMemcpy(actual.data(), data.get(), actual.size() * sizeof(float), cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(actual, expected);
}

// Remainders of the four-element loads, and one array longer than the grid.
INSTANTIATE_TEST_SUITE_P(Counts, CudaScale, testing::Values(0, 1, 3, 4, 1023, 5'000'001));

}  // namespace
}  // namespace aliquot
