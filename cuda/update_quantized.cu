// A warp takes a block of quantization.h at a time: each thread holds two quads of its new numbers, until all threads
// know its scale.
#include "cuda/update_quantized.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "cuda/launch.h"
#include "cuda/masters.h"
#include "cuda/quads.h"

namespace aliquot::cuda {
namespace {

constexpr unsigned warp_threads = 32;
constexpr unsigned block_warps = block_threads / warp_threads;
constexpr unsigned quads = quantization_block / (4 * warp_threads);

template <std::size_t state_count>
struct QuantizedArrays {
  std::array<std::uint8_t*, state_count> codes;
  std::array<float*, state_count> scales;
};

template <typename Codes>
__device__ float4 decoded(uchar4 codes, float scale) {
  const auto one = [scale](std::uint8_t code) {
    return Codes::decoded(static_cast<float>(static_cast<typename Codes::Code>(code)), scale);
  };
  return make_float4(one(codes.x), one(codes.y), one(codes.z), one(codes.w));
}

template <typename Codes>
__device__ uchar4 encoded(float4 numbers, float inverse) {
  const auto one = [inverse](float number) {
    return static_cast<std::uint8_t>(static_cast<int>(Codes::encoded(number, inverse)));
  };
  return make_uchar4(one(numbers.x), one(numbers.y), one(numbers.z), one(numbers.w));
}

/// The new numbers of one state that a thread holds. Those behind the end are zeros.
struct NewNumbers {
  float4 numbers[quads] = {};

  /// The scale of the block. Every thread of the warp calls it.
  template <typename Codes>
  __device__ float scale() const {
    constexpr unsigned all = 0xFFFFFFFF;
    float least = 0, greatest = 0;
#pragma unroll
    for (const float4& n : numbers) {
      least = lesser(lesser(lesser(n.x, n.y), lesser(n.z, n.w)), least);
      greatest = greater(greater(greater(n.x, n.y), greater(n.z, n.w)), greatest);
    }
#pragma unroll
    for (unsigned distance = warp_threads / 2; distance > 0; distance /= 2) {
      least = lesser(__shfl_xor_sync(all, least, distance), least);
      greatest = greater(__shfl_xor_sync(all, greatest, distance), greatest);
    }
    return Codes::scale_of(least, greatest);
  }
};

/// body(at, number of the quad) for each of this thread's quads of the block [begin, end).
template <typename Body>
__device__ void for_quads_of_block(std::size_t begin, std::size_t end, bool aligned, const Body& body) {
#pragma unroll
  for (unsigned quad = 0; quad < quads; ++quad) {
    const std::size_t i = begin + 4 * (quad * warp_threads + threadIdx.x % warp_threads);
    if (i < end) at_quad(i, end, aligned, [&](auto at) { body(at, quad); });
  }
}

/// Encodes and stores one state of the block.
template <typename Codes>
__device__ void store_state(const NewNumbers& state, std::uint8_t* codes, float* scale_of_block, std::size_t begin,
                            std::size_t end, bool aligned) {
  const float scale = state.scale<Codes>();
  const float inverse = Scale<float>::inverse(scale);
  for_quads_of_block(begin, end, aligned, [&](auto at, unsigned quad) {
    at.store_codes(encoded<Codes>(state.numbers[quad], inverse), codes);
  });
  if (threadIdx.x % warp_threads == 0) *scale_of_block = scale;
}

template <typename R, std::size_t i>
using CodesOfState = CodesOf<R::states[i], float>;

/// The block [begin, end), by a warp.
template <typename R, typename Masters, typename Grad, std::size_t... i>
__device__ void update_block(const Masters& masters, const Grad* grad, const QuantizedArrays<sizeof...(i)>& arrays,
                             const typename R::Scalars& s, float grad_scale, std::size_t slot, std::size_t begin,
                             std::size_t end, bool aligned, std::index_sequence<i...>) {
  const float scales[] = {arrays.scales[i][slot]...};
  NewNumbers news[sizeof...(i)];
  for_quads_of_block(begin, end, aligned, [&](auto at, unsigned quad) {
    float4 p = masters.load(at);
    const float4 g = at.read(grad);
    float4 states[] = {decoded<CodesOfState<R, i>>(at.load_codes(arrays.codes[i]), scales[i])...};
    R::update(s, p.x, g.x * grad_scale, states[i].x...);
    R::update(s, p.y, g.y * grad_scale, states[i].y...);
    R::update(s, p.z, g.z * grad_scale, states[i].z...);
    R::update(s, p.w, g.w * grad_scale, states[i].w...);
    ((news[i].numbers[quad] = states[i]), ...);
    masters.store(at, p);
  });
  (store_state<CodesOfState<R, i>>(news[i], arrays.codes[i], &arrays.scales[i][slot], begin, end, aligned), ...);
}

template <typename R, typename Masters, typename Grad, std::size_t state_count>
__global__ void __launch_bounds__(block_threads)
    update_kernel(Masters masters, const Grad* grad, QuantizedArrays<state_count> arrays, std::size_t shard_numel,
                  bool aligned, const Chunk* chunks, const ParamScalars<R>* scalars, const StepState* state) {
  const Chunk chunk = chunks[blockIdx.x];
  const float grad_scale = state->grad_scale;
  if (state->skip != 0) return;
  const ParamScalars<R> s = scalars[chunk.param];
  if (s.stepped == 0) return;
  const std::size_t end = chunk.begin + chunk.count;
  const std::size_t warp = threadIdx.x / warp_threads;
  for (std::size_t i = chunk.begin + warp * quantization_block; i < end; i += block_warps * quantization_block) {
    const std::size_t slot = scale_slot(i, chunk.param, shard_numel);
    const std::size_t end_of_block = i + quantization_block < end ? i + quantization_block : end;
    update_block<R>(masters, grad, arrays, s.of_rule, grad_scale, slot, i, end_of_block,
                    aligned && chunk.begin % 4 == 0, std::make_index_sequence<state_count>());
  }
}

}  // namespace

void update_quantized(const AdamW8bit&, const UnitUpdate& unit, Stream stream) {
  using R = AdamW8bit;
  const Weights& w = unit.weights;
  const bool aligned = aligned_to_16({w.param, w.master, unit.grad, unit.codes[0], unit.codes[1]});
  QuantizedArrays<R::states.size()> arrays;
  std::copy_n(unit.codes.begin(), arrays.codes.size(), arrays.codes.begin());
  std::copy_n(unit.scales.begin(), arrays.scales.size(), arrays.scales.begin());
  with_masters(w, [&](const auto& masters) {
    with_gradient_type(unit.grad_dtype, [&]<typename Grad>(Grad) {
      if (unit.chunk_count == 0) return;
      update_kernel<R><<<static_cast<unsigned>(unit.chunk_count), block_threads, 0, native(stream)>>>(
          masters, static_cast<const Grad*>(unit.grad), arrays, unit.shard_numel, aligned, unit.chunks,
          static_cast<const ParamScalars<R>*>(unit.scalars), unit.state);
    });
  });
}

}  // namespace aliquot::cuda
