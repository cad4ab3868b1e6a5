// A warp takes a block of quantization.h at a time: each thread holds two quads of its new numbers, until all threads
// know its scale. What a block needs is loaded before anything is computed; codes go through tables in shared memory.
#include "cuda/update_quantized.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "cuda/code_tables.h"
#include "cuda/lanes.h"
#include "cuda/launch.h"
#include "cuda/masters.h"
#include "cuda/quads.h"

namespace aliquot::cuda {
namespace {

constexpr unsigned warp_threads = 32;
constexpr unsigned block_warps = block_threads / warp_threads;
constexpr unsigned block_numel = quantization_block;  // in registers of 32 bits
constexpr unsigned quads = block_numel / (4 * warp_threads);

/// Of a multiprocessor: 64 registers a thread, and 64 bytes that each has asked the memory for.
constexpr unsigned blocks_at_once = 4;

using Numbers = Floats<4 * quads>;

/// Where a thread's quads of a block lie: Whole or Part.
template <typename At>
struct Places {
  At of[quads];
};

template <typename At, typename Load>
__device__ Numbers loaded(const Places<At>& places, const Load& load) {
  Numbers numbers;
#pragma unroll
  for (unsigned q = 0; q < quads; ++q) {
    const float4 quad = load(places.of[q]);
    numbers.of[4 * q] = quad.x, numbers.of[4 * q + 1] = quad.y;
    numbers.of[4 * q + 2] = quad.z, numbers.of[4 * q + 3] = quad.w;
  }
  return numbers;
}

__device__ float4 quad_of(const Numbers& numbers, unsigned q) {
  const float* const of = numbers.of + 4 * q;
  return make_float4(of[0], of[1], of[2], of[3]);
}

template <std::size_t state_count>
struct QuantizedArrays {
  std::array<std::uint8_t*, state_count> codes;
  std::array<float*, state_count> scales;
};

__device__ constexpr auto signed_table = code_table<SignedCodes<float>>();
__device__ constexpr auto unsigned_table = code_table<UnsignedCodes<float>>();

/// Of a block of threads.
struct Tables {
  CodeTable<SignedCodes<float>> with_sign;
  CodeTable<UnsignedCodes<float>> without;

  /// By all threads.
  __device__ void fill() {
    copy(signed_table, with_sign);
    copy(unsigned_table, without);
    __syncthreads();
  }
  __device__ const CodeTable<SignedCodes<float>>& of(SignedCodes<float>) const { return with_sign; }
  __device__ const CodeTable<UnsignedCodes<float>>& of(UnsignedCodes<float>) const { return without; }

 private:
  template <typename Table>
  static __device__ void copy(const Table& from, Table& to) {
    static_assert(block_threads == 256, "an entry a thread");
    to.lines[threadIdx.x] = from.lines[threadIdx.x];
    to.values[threadIdx.x] = from.values[threadIdx.x];
  }
};

/// The codes of two quads.
struct CodeWords {
  std::uint32_t of[quads];
};

template <typename At>
__device__ CodeWords loaded_codes(const Places<At>& places, const std::uint8_t* codes) {
  CodeWords words;
#pragma unroll
  for (unsigned q = 0; q < quads; ++q) words.of[q] = places.of[q].load_codes(codes);
  return words;
}

template <typename Codes>
__device__ Numbers decoded(const CodeTable<Codes>& table, CodeWords words, float scale) {
  return Numbers::made(
      [&](unsigned i) { return decoded(table, static_cast<std::uint8_t>(words.of[i / 4] >> (8 * (i % 4))), scale); });
}

/// Two numbers, each cut off to the nearest code, below the lower half of `above`: with the conversions of the numbers
/// this is a single instruction.
template <typename Codes>
__device__ std::uint32_t packed(float first, float second, std::uint32_t above) {
  std::uint32_t word;
  if constexpr (std::is_signed_v<typename Codes::Code>) {
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;"
        : "=r"(word)
        : "r"(__float2int_rz(second)), "r"(__float2int_rz(first)), "r"(above));
  } else {
    asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, %3;"
        : "=r"(word)
        : "r"(__float2int_rz(second)), "r"(__float2int_rz(first)), "r"(above));
  }
  return word;
}

template <typename Codes>
__device__ std::uint32_t encoded(const CodeTable<Codes>& table, float4 quad, float inverse) {
  const auto one = [&](float number) { return encoded(table, number, inverse); };
  return packed<Codes>(one(quad.x), one(quad.y), packed<Codes>(one(quad.z), one(quad.w), 0));
}

/// The scale of the block of which the threads of a warp hold `numbers`, zeros behind the end. Bits of floats are
/// compared: as integers without a sign the greatest is the least number, if any is negative, and as integers the
/// greatest number. Every thread of the warp calls it.
template <typename Codes>
__device__ float scale_of(const Numbers& numbers) {
  constexpr unsigned all = 0xFFFFFFFF;
  const float extreme = __uint_as_float(__reduce_max_sync(all, numbers.bounds().greatest));
  if constexpr (!std::is_signed_v<typename Codes::Code>) return Codes::scale_of(0, extreme);
  int greatest = 0;
#pragma unroll
  for (const float number : numbers.of) greatest = max(greatest, __float_as_int(number));
  return Codes::scale_of(fminf(extreme, 0), __int_as_float(__reduce_max_sync(all, greatest)));
}

/// Encodes and stores one state of the block.
template <typename Codes, typename At>
__device__ void store_state(const CodeTable<Codes>& table, const Numbers& numbers, const Places<At>& places,
                            std::uint8_t* codes, float* scale_of_block) {
  const float scale = scale_of<Codes>(numbers);
  const float inverse = Scale<float>::inverse(scale);
#pragma unroll
  for (unsigned q = 0; q < quads; ++q) places.of[q].store_codes(encoded(table, quad_of(numbers, q), inverse), codes);
  if (threadIdx.x % warp_threads == 0) *scale_of_block = scale;
}

template <typename R, std::size_t i>
using CodesOfState = CodesOf<R::states[i], float>;

/// One block, by a warp.
template <typename R, typename At, typename Masters, typename Grad, std::size_t... i>
__device__ void update_block(const Places<At>& places, const Masters& masters, const Grad* grad,
                             const QuantizedArrays<sizeof...(i)>& arrays, const Tables& tables,
                             const typename R::Scalars& s, float grad_scale, std::size_t slot,
                             std::index_sequence<i...>) {
  const float scales[] = {arrays.scales[i][slot]...};
  const CodeWords codes[] = {loaded_codes(places, arrays.codes[i])...};
  Numbers p = loaded(places, [&](auto at) { return masters.load(at); });
  const Numbers g = loaded(places, [&](auto at) { return at.read(grad); });
  Numbers states[] = {decoded(tables.of(CodesOfState<R, i>()), codes[i], scales[i])...};
  R::update(s, p, g * grad_scale, states[i]...);
#pragma unroll
  for (unsigned q = 0; q < quads; ++q) masters.store(places.of[q], quad_of(p, q));
  (store_state(tables.of(CodesOfState<R, i>()), states[i], places, arrays.codes[i], &arrays.scales[i][slot]), ...);
}

/// The elements between a thread's quads.
constexpr unsigned stride = 4 * warp_threads;

/// The places of this thread's quads of a block: of one that is whole and aligned, and of any [begin, end).
__device__ Places<Whole> whole_places(std::size_t begin) {
  Places<Whole> places;
  begin += 4 * (threadIdx.x % warp_threads);
#pragma unroll
  for (unsigned q = 0; q < quads; ++q) places.of[q] = {begin + q * stride};
  return places;
}
__device__ Places<Part> places_of_parts(std::size_t begin, std::size_t end) {
  Places<Part> places;
  begin += 4 * (threadIdx.x % warp_threads);
#pragma unroll
  for (unsigned q = 0; q < quads; ++q, begin += stride) {
    places.of[q] = {begin, begin < end ? static_cast<unsigned>(min(end - begin, std::size_t{4})) : 0U};
  }
  return places;
}

template <typename R, typename Masters, typename Grad, std::size_t state_count>
__global__ void __launch_bounds__(block_threads, blocks_at_once)
    update_kernel(Masters masters, const Grad* grad, QuantizedArrays<state_count> arrays, std::size_t shard_numel,
                  bool aligned, const Chunk* chunks, const ParamScalars<R>* scalars, const StepState* state) {
  __shared__ Tables tables;
  const Chunk chunk = chunks[blockIdx.x];
  const float grad_scale = state->grad_scale;
  const bool skip = state->skip != 0;
  tables.fill();  // whose barrier the loads above do not pass: they are under way with those of the tables
  if (skip) return;
  const ParamScalars<R> s = scalars[chunk.param];
  if (s.stepped == 0) return;
  const std::size_t first_slot = scale_slot(chunk.begin, chunk.param, shard_numel);  // a chunk lies in one shard
  const unsigned whole = aligned && chunk.begin % 4 == 0 ? chunk.count / block_numel * block_numel : 0;
  for (unsigned at = threadIdx.x / warp_threads * block_numel; at < chunk.count; at += block_warps * block_numel) {
    const auto update_at = [&](const auto& places) {
      update_block<R>(places, masters, grad, arrays, tables, s.of_rule, grad_scale, first_slot + at / block_numel,
                      std::make_index_sequence<state_count>());
    };
    if (at < whole) {
      update_at(whole_places(chunk.begin + at));
    } else {
      update_at(places_of_parts(chunk.begin + at, chunk.begin + chunk.count));
    }
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
