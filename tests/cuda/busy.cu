#include "tests/cuda/busy.h"

#include "cuda/launch.h"

namespace aliquot::test {
namespace {

__global__ void linger_kernel(long long cycles) {
  const long long begin = clock64();
  while (clock64() - begin < cycles) {
  }
}

__global__ void axpy_kernel(float a, const float* x, float* y, std::size_t count) {
  const std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x;
  if (i < count) y[i] += a * x[i];
}

}  // namespace

void linger(std::uint64_t cycles, Stream stream) {
  linger_kernel<<<1, 1, 0, cuda::native(stream)>>>(static_cast<long long>(cycles));
  cuda::check(cudaGetLastError(), "linger");
}

void axpy(float a, const float* x, float* y, std::size_t count, Stream stream) {
  if (count == 0) return;
  const auto blocks = static_cast<unsigned>((count + cuda::block_threads - 1) / cuda::block_threads);
  axpy_kernel<<<blocks, cuda::block_threads, 0, cuda::native(stream)>>>(a, x, y, count);
  cuda::check(cudaGetLastError(), "add");
}

}  // namespace aliquot::test
