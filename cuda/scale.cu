#include "cuda/scale.h"

#include "cuda/launch.h"

namespace aliquot::cuda {
namespace {

/// Four elements a thread and step: 16-byte accesses reach the memory's rate. The first threads take what is left.
__global__ void scale_kernel(float* data, std::size_t count, const float* factor) {
  const float f = *factor;
  const std::size_t first = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x;
  float4* const quads = reinterpret_cast<float4*>(data);
  for (std::size_t i = first; i < count / 4; i += std::size_t{gridDim.x} * blockDim.x) {
    const float4 q = quads[i];
    quads[i] = make_float4(q.x * f, q.y * f, q.z * f, q.w * f);
  }
  if (first < count % 4) data[count - count % 4 + first] *= f;
}

}  // namespace

void scale(float* data, std::size_t count, const float* factor, Stream stream) {
  if (count == 0) return;
  scale_kernel<<<grid_blocks(count / 4), block_threads, 0, native(stream)>>>(data, count, factor);
  check(cudaGetLastError(), "launch scale");
}

}  // namespace aliquot::cuda
