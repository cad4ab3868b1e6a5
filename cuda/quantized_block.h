/// \file
/// A block of quantization.h as a warp has it in registers: two quads of a thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "aliquot/quantization.h"
#include "cuda/lanes.h"
#include "cuda/quads.h"

namespace aliquot::cuda {

inline constexpr unsigned warp_threads = 32;
inline constexpr unsigned all_of_warp = 0xFFFFFFFF;
inline constexpr unsigned block_share = quantization_block / warp_threads;  ///< of a thread, in registers
inline constexpr unsigned quads_of_thread = block_share / 4;

/// Where a thread's quads of a block lie: Whole or Part.
template <typename At>
struct Places {
  At of[quads_of_thread];
};

/// The elements between a thread's quads.
inline constexpr unsigned quad_stride = 4 * warp_threads;

/// Of a block that is whole and aligned, and of any [begin, end).
inline __device__ Places<Whole> whole_places(std::size_t begin) {
  Places<Whole> places;
  begin += 4 * (threadIdx.x % warp_threads);
#pragma unroll
  for (unsigned q = 0; q < quads_of_thread; ++q) places.of[q] = {begin + q * quad_stride};
  return places;
}
inline __device__ Places<Part> places_of_parts(std::size_t begin, std::size_t end) {
  Places<Part> places;
  begin += 4 * (threadIdx.x % warp_threads);
#pragma unroll
  for (unsigned q = 0; q < quads_of_thread; ++q, begin += quad_stride) {
    places.of[q] = {begin, begin < end ? static_cast<unsigned>(min(end - begin, std::size_t{4})) : 0U};
  }
  return places;
}

/// A thread's numbers of a block.
template <typename Range>
using Numbers = Floats<block_share, Range>;

template <typename Range, typename At, typename Load>
__device__ Numbers<Range> loaded(const Places<At>& places, const Load& load) {
  Numbers<Range> numbers;
#pragma unroll
  for (unsigned q = 0; q < quads_of_thread; ++q) {
    const float4 quad = load(places.of[q]);
    numbers.of[4 * q] = quad.x, numbers.of[4 * q + 1] = quad.y;
    numbers.of[4 * q + 2] = quad.z, numbers.of[4 * q + 3] = quad.w;
  }
  return numbers;
}

template <typename Range, typename At, typename Masters>
__device__ void store(const Numbers<Range>& numbers, const Places<At>& places, const Masters& masters) {
#pragma unroll
  for (unsigned q = 0; q < quads_of_thread; ++q) {
    const float* const of = numbers.of + 4 * q;
    masters.store(places.of[q], make_float4(of[0], of[1], of[2], of[3]));
  }
}

/// The codes of a thread, four to a word.
struct CodeWords {
  std::uint32_t of[quads_of_thread];
};

template <typename At>
__device__ CodeWords loaded_codes(const Places<At>& places, const std::uint8_t* codes) {
  CodeWords words;
#pragma unroll
  for (unsigned q = 0; q < quads_of_thread; ++q) words.of[q] = places.of[q].load_codes(codes);
  return words;
}

template <typename At>
__device__ void store_codes(const CodeWords& words, const Places<At>& places, std::uint8_t* codes) {
#pragma unroll
  for (unsigned q = 0; q < quads_of_thread; ++q) places.of[q].store_codes(words.of[q], codes);
}

/// The least of a block's numbers, or zero, and the greatest, of which the threads of a warp hold `numbers`, zeros
/// behind the end. Every thread of the warp calls it. Bits are compared: as integers without a sign the greatest is the
/// least number, if any is negative, and as integers the greatest number.
struct Extremes {
  float least, greatest;
};
template <typename Codes, typename Range>
__device__ Extremes extremes(const Numbers<Range>& numbers) {
  unsigned outermost = 0;
#pragma unroll
  for (const float number : numbers.of) outermost = max(outermost, __float_as_uint(number));
  const float found = __uint_as_float(__reduce_max_sync(all_of_warp, outermost));
  if constexpr (!std::is_signed_v<typename Codes::Code>) return {0, found};
  int greatest = 0;
#pragma unroll
  for (const float number : numbers.of) greatest = max(greatest, __float_as_int(number));
  return {fminf(found, 0), __int_as_float(__reduce_max_sync(all_of_warp, greatest))};
}

template <std::size_t state_count>
struct QuantizedArrays {
  std::array<std::uint8_t*, state_count> codes;
  std::array<float*, state_count> scales;
};

inline __device__ void store_scale(float scale, float* of_block) {
  if (threadIdx.x % warp_threads == 0) *of_block = scale;
}

}  // namespace aliquot::cuda
