// Blocks of threads stay, as many as the device holds, and walk over the chunks: their tables are filled once.
#include "cuda/update_quantized.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "cuda/launch.h"
#include "cuda/masters.h"
#include "cuda/update_block.h"

namespace aliquot::cuda {
namespace {

/// Of a multiprocessor: 64 registers a thread, and 64 bytes that each has asked the memory for.
constexpr unsigned blocks_at_once = 2, threads = 512;

/// A chunk is taken by four warps, so that its scalars are loaded for several blocks and there are chunks for all.
constexpr unsigned chunk_warps = 4, chunks_at_once = threads / (chunk_warps * warp_threads);

__device__ constexpr auto negative_cells = cells<Signed>(true), positive_cells = cells<Signed>(false);
__device__ constexpr auto unsigned_cells = cells<Unsigned>(false);
__device__ constexpr auto signed_values = values<Signed>();
__device__ constexpr auto unsigned_values = values<Unsigned>();

template <typename Codes>
__device__ void copy(const Cells<Codes>& from, Cells<Codes>& to) {
  for (unsigned i = threadIdx.x; i < from.of.size(); i += threads) to.of[i] = from.of[i];
}
__device__ void copy(const std::array<float, 256>& from, SharedValues& to) {
  constexpr unsigned copies = SharedValues::copies;
  for (unsigned i = threadIdx.x; i < from.size() * copies; i += threads)
    to.of[i / copies][i % copies] = from[i / copies];
}
/// By all threads.
__device__ void fill(SharedTables& tables) {
  copy(negative_cells, tables.negative);
  copy(positive_cells, tables.positive);
  copy(unsigned_cells, tables.unsigned_numbers);
  copy(signed_values, tables.signed_values);
  copy(unsigned_values, tables.unsigned_values);
  __syncthreads();
}

template <typename R, typename Masters, typename Grad, std::size_t state_count>
__global__ void __launch_bounds__(threads, blocks_at_once)
    update_kernel(Masters masters, const Grad* grad, QuantizedArrays<state_count> arrays, std::size_t shard_numel,
                  bool aligned, const Chunk* chunks, std::size_t chunk_count, const ParamScalars<R>* scalars,
                  const StepState* state) {
  extern __shared__ uint4 memory[];
  SharedTables& tables = *reinterpret_cast<SharedTables*>(memory);
  if (state->skip != 0) return;
  const float grad_scale = state->grad_scale;
  fill(tables);
  const unsigned warp = __shfl_sync(all_of_warp, threadIdx.x / warp_threads, 0);  // which the compiler knows is uniform
  for (std::size_t i = blockIdx.x * chunks_at_once + warp / chunk_warps; i < chunk_count;
       i += gridDim.x * chunks_at_once) {
    const Chunk chunk = chunks[i];
    const ParamScalars<R> s = scalars[chunk.param];
    if (s.stepped == 0) continue;
    const std::size_t first_slot = scale_slot(chunk.begin, chunk.param, shard_numel);  // a chunk lies in one shard
    const bool by_tables = aligned && chunk.begin % 4 == 0 && in_range(s.of_rule.adam);
    for (unsigned at = warp % chunk_warps * quantization_block; at < chunk.count;
         at += chunk_warps * quantization_block) {
      const std::size_t begin = chunk.begin + at, slot = first_slot + at / quantization_block;
      if (by_tables && at + quantization_block <= chunk.count &&
          update_by_tables<R>(whole_places(begin), masters, grad, arrays, tables, s.of_rule, grad_scale, slot)) {
        continue;
      }
      update_by_rule<R>(places_of_parts(begin, chunk.begin + chunk.count), masters, grad, arrays, s.of_rule, grad_scale,
                        slot, std::make_index_sequence<state_count>());
    }
  }
}

unsigned multiprocessors() {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "tell the current device");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "count multiprocessors");
  return static_cast<unsigned>(count);
}

unsigned blocks_for(std::size_t chunk_count) {
  const std::size_t blocks = (chunk_count + chunks_at_once - 1) / chunks_at_once;
  return static_cast<unsigned>(std::min<std::size_t>(blocks, blocks_at_once * multiprocessors()));
}

}  // namespace

void update_quantized(const AdamW8bit&, const UnitUpdate& unit, Stream stream) {
  using R = AdamW8bit;
  if (unit.chunk_count == 0) return;
  const Weights& w = unit.weights;
  const bool aligned = aligned_to_16({w.param, w.master, unit.grad, unit.codes[0], unit.codes[1]});
  QuantizedArrays<R::states.size()> arrays;
  std::copy_n(unit.codes.begin(), arrays.codes.size(), arrays.codes.begin());
  std::copy_n(unit.scales.begin(), arrays.scales.size(), arrays.scales.begin());
  with_masters(w, [&]<typename Masters>(const Masters& masters) {
    with_gradient_type(unit.grad_dtype, [&]<typename Grad>(Grad) {
      const auto kernel = &update_kernel<R, Masters, Grad, R::states.size()>;
      constexpr std::size_t shared = sizeof(SharedTables);
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
            "give update its tables");
      kernel<<<blocks_for(unit.chunk_count), threads, shared, native(stream)>>>(
          masters, static_cast<const Grad*>(unit.grad), arrays, unit.shard_numel, aligned, unit.chunks,
          unit.chunk_count, static_cast<const ParamScalars<R>*>(unit.scalars), unit.state);
    });
  });
}

}  // namespace aliquot::cuda
