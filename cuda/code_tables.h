/// \file
/// The codes of quantization.h by tables, to the bit: looking through all decades for every number would take a kernel
/// longer than its memory does. Floats are cut into cells, equal in all but their lowest bits and so small that the
/// code changes once in a cell at most. What a cell holds, added to the bits of a float in it, has the code as its
/// upper byte: a float from which the code is the next one on makes the sum carry. No CUDA is needed here.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <type_traits>

#include "aliquot/quantization.h"

namespace aliquot::cuda {

template <typename Codes>
inline constexpr bool signed_codes = std::is_signed_v<typename Codes::Code>;

/// What values are multiplied with to be looked up. It makes those below 2^-26 denormal, which are to be zeros by then:
/// they share the code of the smallest, and so few exponents are left.
inline constexpr float to_cells = 0x1p-100F;

template <typename Codes>
struct Cells {
  static constexpr unsigned shift = signed_codes<Codes> ? 17 : 16;  ///< the lowest bits
  static constexpr unsigned of_exponent = 1U << (23 - shift);
  static constexpr unsigned exponents = 27;  ///< of 0, and of 2^-26 to 1/2
  static constexpr unsigned count = exponents * of_exponent + 1;

  /// By the bits, upwards; those of 1 and somewhat more are the last.
  std::array<std::uint32_t, count> of;

  /// Below zero for numbers that are.
  static constexpr std::int32_t index(float scaled) { return std::bit_cast<std::int32_t>(scaled) >> shift; }
  static constexpr std::int32_t first_negative = index(-0.0F);
};

/// Codes of values with that sign, as they are looked up: of negative ones all bits are turned around, for they fall
/// where the bits rise.
template <typename Codes>
constexpr std::uint32_t upward_code(float value) {
  const int code = static_cast<typename Codes::Code>(Codes::encoded(value, 1));
  return static_cast<std::uint8_t>(std::bit_cast<std::int32_t>(value) < 0 ? ~code : code);
}

template <typename Codes>
constexpr std::uint32_t cell(unsigned number, bool negative) {
  constexpr std::uint32_t code_unit = 1U << 24, scaled_down = 100U << 23, smallest = 1U << 23;
  const std::uint32_t sign = negative ? 0x80000000U : 0, first = number << Cells<Codes>::shift;
  const auto code = [&](std::uint32_t bits) {
    return upward_code<Codes>(std::bit_cast<float>(sign | (scaled_down + (bits < smallest ? smallest : bits))));
  };
  std::uint32_t below = first, from = first + (1U << Cells<Codes>::shift);  // the code changes between them
  const bool changes = code(from - 1) != code(first);
  while (changes && from - below > 1) {
    const std::uint32_t middle = below + (from - below) / 2;
    (code(middle) == code(first) ? below : from) = middle;
  }
  return code(first) * code_unit + (changes ? code_unit - (from - first) : 0) - (sign | first);
}

template <typename Codes>
constexpr Cells<Codes> cells(bool negative) {
  Cells<Codes> made{};
  for (unsigned i = 0; i < made.of.size(); ++i) made.of[i] = cell<Codes>(i, negative);
  return made;
}

/// By the code, at the scale 1.
template <typename Codes>
constexpr std::array<float, 256> values() {
  std::array<float, 256> made{};
  for (unsigned i = 0; i < made.size(); ++i) {
    made[i] = Codes::decoded(static_cast<float>(static_cast<typename Codes::Code>(i)), 1);
  }
  return made;
}

}  // namespace aliquot::cuda
