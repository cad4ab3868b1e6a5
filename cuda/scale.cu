#include "aliquot/device_kernels.h"
#include "cuda/launch.h"
#include "cuda/quads.h"

namespace aliquot::cuda {
namespace {

template <typename T>
__global__ void scale_kernel(T* data, std::size_t count, const float* factor, bool aligned) {
  const float f = *factor;
  for_quads<quads_under_way<T>>(
      count, aligned, [=](auto at) { return at.load(data); },
      [=](auto at, float4 v) { at.store(make_float4(v.x * f, v.y * f, v.z * f, v.w * f), data); });
}

}  // namespace

void scale(void* data, DType dtype, std::size_t count, const float* factor, Stream stream) {
  with_gradient_type(dtype, [&]<typename T>(T) {
    if (count == 0) return;
    scale_kernel<<<grid_blocks(count / 4), block_threads, 0, native(stream)>>>(static_cast<T*>(data), count, factor,
                                                                               aligned_to_16({data}));
  });
  check(cudaGetLastError(), "launch scale");
}

}  // namespace aliquot::cuda
