/// \file
/// The codes of quantization.h by tables, to the bit: looking through all decades for every number would take a kernel
/// longer than its memory does. No CUDA is needed here.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "aliquot/quantization.h"

namespace aliquot::cuda {

/// Positions as a function of values.
struct Line {
  float slope, offset;

  constexpr float at(float value) const { return value * slope + offset; }
};

/// Values between two powers of 2 meet two decades at most. Of the lines of these the least holds.
struct alignas(16) TwoLines {
  Line first, second;
};

template <typename Codes>
struct CodeTable {
  std::array<TwoLines, 256> lines;  ///< by the exponent of the value
  std::array<float, 256> values;    ///< by the code, at the scale 1
};

template <int... number>
constexpr Line least_line(double value, std::integer_sequence<int, number...>) {
  Line least{Decade<0>::positions_per_value, Decade<0>::first_position};
  const auto take = [&](Line line) {
    if (value * line.slope + line.offset < value * least.slope + least.offset) least = line;
  };
  (take({Decade<number>::positions_per_value, Decade<number>::first_position}), ...);
  return least;
}

/// Of the values that have this exponent, times `factor`, a power of 2. Those from 1 on, and infinity, lie behind the
/// last position.
constexpr TwoLines lines_of(unsigned exponent, float factor) {
  constexpr unsigned of_one = 127;
  if (exponent >= of_one) return {{1, 128 * factor}, {1, 128 * factor}};
  const auto scaled = [&](unsigned power) {
    const Line line = least_line(std::bit_cast<float>(power << 23), Decades());
    return Line{line.slope * factor, line.offset * factor};
  };
  return {scaled(exponent), scaled(exponent + 1)};
}

constexpr TwoLines lines_of(SignedCodes<float>, unsigned exponent) { return lines_of(exponent, 1); }

/// Twice the positions, from which codes count. Those of code 1 are 2, however small the value, and only that of zero
/// is less: the line of exponent 0 tells it from the smallest denormal number.
constexpr TwoLines lines_of(UnsignedCodes<float>, unsigned exponent) {
  constexpr Line two{0, 2};
  if (exponent == 0) return {{0x1p127F, 2 - 0x1p-23F}, two};
  const TwoLines lines = lines_of(exponent, 2);
  const bool all_below_two = lines.second.at(std::bit_cast<float>((exponent + 1) << 23)) < 3;
  return all_below_two ? TwoLines{two, two} : lines;
}

template <typename Codes>
constexpr CodeTable<Codes> code_table() {
  CodeTable<Codes> table{};
  for (unsigned i = 0; i < 256; ++i) {
    table.lines[i] = lines_of(Codes(), i);
    table.values[i] = Codes::decoded(static_cast<float>(static_cast<typename Codes::Code>(i)), 1);
  }
  return table;
}

/// Codes::decoded().
template <typename Codes>
constexpr float decoded(const CodeTable<Codes>& table, std::uint8_t code, float scale) {
  return table.values[code] * scale;
}

/// Codes::encoded(), to be cut off to the code that is nearest to it.
template <typename Codes>
constexpr float encoded(const CodeTable<Codes>& table, float number, float inverse) {
  const float value = number * inverse, size = std::fabs(value);
  const TwoLines lines = table.lines[std::bit_cast<std::uint32_t>(value) >> 23 & 0xFF];
  const float position = std::fmin(lines.first.at(size), lines.second.at(size));  // a number where one of them is
  if constexpr (std::is_signed_v<typename Codes::Code>) return std::copysign(position, value);
  return position - 1;
}

}  // namespace aliquot::cuda
