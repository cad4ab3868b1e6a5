/// \file
/// The tables of code_tables.h in shared memory, and the codes of a thread's numbers by them.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "cuda/code_tables.h"
#include "cuda/quantized_block.h"

namespace aliquot::cuda {

using Signed = SignedCodes<float>;
using Unsigned = UnsignedCodes<float>;

/// The value of each code, in as many copies as leave two threads of a warp to share one: more would not wait less than
/// they cost in memory.
struct SharedValues {
  static constexpr unsigned copies = 16, code_shift = 6;
  static_assert(copies * sizeof(float) == 1U << code_shift);

  float of[256][copies];

  /// Of the code in that byte of `word`.
  __device__ float at(std::uint32_t word, unsigned byte, std::uint32_t copy) const {
    const std::uint32_t above = byte == 0 ? word << code_shift : word >> (8 * byte - code_shift);
    const std::uint32_t offset = (above & 0xFFU << code_shift) | copy;
    return *reinterpret_cast<const float*>(reinterpret_cast<const std::byte*>(of) + offset);
  }
  /// This thread's, by its offset, handed around so that the compiler does not work it out anew for each code.
  static __device__ std::uint32_t copy() {
    const unsigned thread = threadIdx.x % warp_threads;
    return __shfl_sync(all_of_warp, static_cast<unsigned>(sizeof(float)) * (thread % copies), thread);
  }
};

/// Of a block of threads.
struct SharedTables {
  static constexpr std::size_t between_signs = sizeof(std::uint32_t) * -Cells<Signed>::first_negative;

  Cells<Signed> negative;
  Cells<Unsigned> unsigned_numbers;
  SharedValues signed_values, unsigned_values;
  std::byte unused[between_signs - sizeof negative - sizeof unsigned_numbers - 2 * sizeof(SharedValues)];
  Cells<Signed> positive;  ///< so far from the negative ones that an index leads to both

  __device__ const SharedValues& values(Signed) const { return signed_values; }
  __device__ const SharedValues& values(Unsigned) const { return unsigned_values; }
  __device__ const std::uint32_t* cells(Signed) const { return positive.of.data(); }
  __device__ const std::uint32_t* cells(Unsigned) const { return unsigned_numbers.of.data(); }
};
static_assert(offsetof(SharedTables, positive) - offsetof(SharedTables, negative) == SharedTables::between_signs);

template <typename Codes>
__device__ Numbers<MiddleRange> decoded(const SharedTables& tables, const CodeWords& words, float scale) {
  const SharedValues& values = tables.values(Codes());
  const std::uint32_t copy = SharedValues::copy();
  return Numbers<MiddleRange>::made([&](unsigned i) { return values.at(words.of[i / 4], i % 4, copy) * scale; });
}

/// Four bytes of a and b; those of b are 4 to 7, and 8 more is eight times the byte's highest bit.
template <unsigned selector>
__device__ std::uint32_t bytes(std::uint32_t a, std::uint32_t b) {
  std::uint32_t word;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(word) : "r"(a), "r"(b), "n"(selector));
  return word;
}
/// A byte of each word, the same of all.
template <unsigned byte>
__device__ std::uint32_t byte_of_each(const std::uint32_t (&words)[4]) {
  constexpr unsigned pair = byte | (byte ^ 4) << 4;
  return bytes<0x5410>(bytes<pair>(words[0], words[1]), bytes<pair>(words[2], words[3]));
}

inline __device__ float flushed_product(float a, float b) {
  float product;
  asm("mul.rn.ftz.f32 %0, %1, %2;" : "=f"(product) : "f"(a), "f"(b));
  return product;
}

/// Codes::encoded() and cut off, of four numbers no larger than their scale. No zeros, if they have no sign.
template <typename Codes>
__device__ std::uint32_t encoded(const SharedTables& tables, const float* numbers, float inverse_to_cells) {
  const auto* const cells = reinterpret_cast<const std::byte*>(tables.cells(Codes()));
  std::uint32_t scaled[4], sums[4];
#pragma unroll
  for (unsigned i = 0; i < 4; ++i) {
    scaled[i] = __float_as_uint(flushed_product(numbers[i], inverse_to_cells));
    const int offset = static_cast<int>(scaled[i]) >> (Cells<Codes>::shift - 2) & ~3;
    sums[i] = scaled[i] + *reinterpret_cast<const std::uint32_t*>(cells + offset);
  }
  constexpr unsigned code = 3, sign = 8 | 3;
  return signed_codes<Codes> ? byte_of_each<code>(sums) ^ byte_of_each<sign>(scaled) : byte_of_each<code>(sums);
}

template <typename Codes>
__device__ CodeWords encoded(const SharedTables& tables, const Numbers<MiddleRange>& numbers, float scale) {
  const float inverse = MiddleRange::quotient(to_cells * Scale<float>::inverse(1), scale);
  CodeWords words;
#pragma unroll
  for (unsigned q = 0; q < quads_of_thread; ++q) words.of[q] = encoded<Codes>(tables, numbers.of + 4 * q, inverse);
  return words;
}

}  // namespace aliquot::cuda
