#include "aliquot/device_kernels.h"
#include "aliquot/streams.h"
#include "cuda/launch.h"
#include "cuda/quads.h"

namespace aliquot::cuda {
namespace {

template <typename From, typename To>
__global__ void cast_kernel(const From* from, To* to, std::size_t count, bool aligned) {
  for_quads<4>(
      count, aligned, [=](auto at) { return at.read(from); }, [=](auto at, float4 value) { at.store(value, to); });
}

}  // namespace

void cast(const void* from, DType from_dtype, void* to, DType to_dtype, std::size_t count, Stream stream) {
  if (from_dtype == to_dtype) return copy_async(to, from, count * size_of(to_dtype), stream);
  if (count == 0) return;
  with_type(from_dtype, [&]<typename From>(From) {
    with_type(to_dtype, [&]<typename To>(To) {
      cast_kernel<<<grid_blocks(count / 4), block_threads, 0, native(stream)>>>(
          static_cast<const From*>(from), static_cast<To*>(to), count, aligned_to_16({from, to}));
    });
  });
  check(cudaGetLastError(), "launch cast");
}

}  // namespace aliquot::cuda
