#include "aliquot/split_master.h"

#include "aliquot/device_kernels.h"
#include "cuda/launch.h"

namespace aliquot::cuda {
namespace {

__global__ void split_kernel(const float* master, std::uint16_t* param, std::uint16_t* low, std::size_t count) {
  const std::size_t stride = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const SplitMaster halves = split_master(master[i]);
    param[i] = halves.high;
    low[i] = halves.low;
  }
}

}  // namespace

void split_masters(const float* master, void* param, std::uint16_t* low, std::size_t count, Stream stream) {
  if (count == 0) return;
  split_kernel<<<grid_blocks(count), block_threads, 0, native(stream)>>>(master, static_cast<std::uint16_t*>(param),
                                                                         low, count);
  check(cudaGetLastError(), "launch split_masters");
}

}  // namespace aliquot::cuda
