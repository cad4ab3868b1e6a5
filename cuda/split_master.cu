#include "aliquot/split_master.h"

#include "aliquot/device_kernels.h"
#include "cuda/launch.h"

namespace aliquot::cuda {
namespace {

template <typename Body>
__device__ void for_elements(std::size_t count, const Body& body) {
  const std::size_t stride = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) body(i);
}

__global__ void split_kernel(const float* master, std::uint16_t* param, std::uint16_t* low, std::size_t count) {
  for_elements(count, [=](std::size_t i) {
    const SplitMaster halves = split_master(master[i]);
    param[i] = halves.high;
    low[i] = halves.low;
  });
}

__global__ void join_kernel(const std::uint16_t* param, const std::uint16_t* low, float* master, std::size_t count) {
  for_elements(count, [=](std::size_t i) { master[i] = join_master({param[i], low[i]}); });
}

}  // namespace

void split_masters(const float* master, void* param, std::uint16_t* low, std::size_t count, Stream stream) {
  if (count == 0) return;
  split_kernel<<<grid_blocks(count), block_threads, 0, native(stream)>>>(master, static_cast<std::uint16_t*>(param),
                                                                         low, count);
  check(cudaGetLastError(), "launch split_masters");
}

void join_masters(const void* param, const std::uint16_t* low, float* master, std::size_t count, Stream stream) {
  if (count == 0) return;
  join_kernel<<<grid_blocks(count), block_threads, 0, native(stream)>>>(static_cast<const std::uint16_t*>(param), low,
                                                                        master, count);
  check(cudaGetLastError(), "launch join_masters");
}

}  // namespace aliquot::cuda
