/// \file
/// States of an optimizer in 8 bits: block-wise dynamic quantization (Dettmers et al., 2022, arXiv 2110.02861). A block
/// of numbers has one scale, its largest number, and each number is a code: which of 256 values it is of the scale. The
/// values lie in seven decades, from 1e-7 to 1, twice as many in each as in the one below it, evenly within: each is
/// the middle of its part of the decade. Of numbers without a sign there are twice as many. F is float, or several of
/// them side by side (Lanes), as in rules.h, and all functions are constexpr. Those that have nothing to do with F are
/// its too, so that each instruction set has its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

#include "aliquot/role.h"
#include "aliquot/rules.h"

namespace aliquot {

/// Numbers that share a scale. Blocks are counted from where a parameter or a shard begins, whatever the stage: so none
/// holds numbers of two parameters, or of two shards.
inline constexpr std::size_t quantization_block = 256;

/// Where the scale of the block that begins `begin` elements into what a rank holds of a unit is, among those that it
/// holds. Those of a parameter's part of a shard lie side by side, and no two blocks have the same. That of the end,
/// behind the last parameter, is how many there may be.
constexpr std::size_t scale_slot(std::size_t begin, std::size_t param, std::size_t shard_numel) {
  const std::size_t shard = begin < shard_numel ? 0 : begin / shard_numel;  // it mostly is, and GPUs divide slowly
  return begin / quantization_block + param + shard;
}

constexpr std::size_t block_count(std::size_t numel) { return (numel + quantization_block - 1) / quantization_block; }

constexpr float lesser(float a, float b) { return a < b ? a : b; }
constexpr float greater(float a, float b) { return a > b ? a : b; }
template <Lanes F>
constexpr F lesser(F lanes, float scalar) {
  return lesser(lanes, F::all(scalar));
}
template <Lanes F>
constexpr F greater(F lanes, float scalar) {
  return greater(lanes, F::all(scalar));
}

constexpr double power_of_ten(int exponent) {
  double power = 1;
  for (; exponent < 0; ++exponent) power /= 10;
  for (; exponent > 0; --exponent) power *= 10;
  return power;
}

/// The values from 10^(number - 7) to ten times that, in 2^number equal parts. A value's position counts the parts from
/// there on and those of all decades below, and begins at 1, so that it is 2^number where the decade begins. As
/// functions of each other the two are lines.
template <int number>
struct Decade {
  static constexpr double parts = 1 << number, end = power_of_ten(number - 6);
  static constexpr auto positions_per_value = static_cast<float>(parts / (0.9 * end));
  static constexpr auto first_position = static_cast<float>(parts * 8 / 9);  ///< where the line meets the value 0
  static constexpr auto values_per_position = static_cast<float>(0.9 * end / parts);
  static constexpr auto first_value = static_cast<float>(-0.8 * end);  ///< where it meets the position 0
};

using Decades = std::make_integer_sequence<int, 7>;

/// From 1 at 1e-7 to 128 at 1 and above. The higher the decade, the less steep: so it is the least of the lines.
template <typename F, int... number>
constexpr F position_of(F value, std::integer_sequence<int, number...>) {
  value = lesser(value, 1.0F);
  F least = value * Decade<0>::positions_per_value + Decade<0>::first_position;
  ((least = lesser(least, value * Decade<number>::positions_per_value + Decade<number>::first_position)), ...);
  return least;
}

/// The inverse, 0 for positions below 8/9.
template <typename F, int... number>
constexpr F value_at(F position, std::integer_sequence<int, number...>) {
  F greatest = position * Decade<0>::values_per_position + Decade<0>::first_value;
  ((greatest = greater(greatest, position * Decade<number>::values_per_position + Decade<number>::first_value)), ...);
  return lesser(greater(greatest, 0.0F), 1.0F);
}

/// What codes multiply with. Every number that is decoded is a normal one, and so encoded to the same code again: a
/// block of smaller numbers becomes zeros, and larger ones become the largest.
template <typename F>
struct Scale {
  static constexpr float smallest = 0x1p-100F, largest = 0x1p126F;

  static constexpr float bounded(float value) {
    const float size = value < 0 ? -value : value;
    if (size < smallest) return 0;
    return size > largest ? (value < 0 ? -largest : largest) : value;
  }
  /// A little more than it is, so that the number that the scale was taken from is not less than 1.
  static constexpr float inverse(float scale) { return scale == 0 ? 0 : (1 + 0x1p-20F) / scale; }
};

/// Codes of numbers with signs: -128 to 127, 0 being zero. The scale is what makes the largest of them -1.
template <typename F>
struct SignedCodes {
  using Code = std::int8_t;

  static constexpr float scale_of(float least, float greatest) {
    return Scale<F>::bounded(greatest < -least ? -least : -greatest);
  }
  static constexpr F decoded(F code, float scale) {
    const F one = sign(code);
    return one * value_at(one * code + 0.5F, Decades()) * scale;
  }
  /// To be cut off to the code.
  static constexpr F encoded(F number, float inverse) {
    const F value = number * inverse, one = sign(value);
    return lesser(one * position_of(one * value, Decades()), 127.0F);
  }
};

/// Codes of numbers that are not negative: 0 to 255. Only zero becomes zero, for a rule divides by their roots: the
/// nearest value to what is less than half of the smallest one would be zero, and the quotient a leap.
template <typename F>
struct UnsignedCodes {
  using Code = std::uint8_t;

  static constexpr float scale_of(float, float greatest) { return Scale<F>::bounded(greatest); }
  static constexpr F decoded(F code, float scale) { return value_at(code * 0.5F + 0.75F, Decades()) * scale; }
  /// To be cut off to the code.
  static constexpr F encoded(F number, float inverse) {
    const F value = number * inverse;
    return greater(position_of(value, Decades()) * 2.0F + -1.0F, sign(value));
  }
};

constexpr bool has_sign(Role state) { return state != Role::exp_avg_sq && state != Role::sum; }

template <Role state, typename F>
using CodesOf = std::conditional_t<has_sign(state), SignedCodes<F>, UnsignedCodes<F>>;

static_assert(position_of(1.0F, Decades()) == 128 && value_at(128.25F, Decades()) == 1);
static_assert(position_of(0.0F, Decades()) < 1 && value_at(0.75F, Decades()) == 0);

// The same for arrays on the host, that begin where a block does: of numbers.size() codes and as many scales as those
// have blocks.

/// \param state  says whether the numbers have signs
void quantize(Role state, std::span<const float> numbers, std::uint8_t* codes, float* scales);
void dequantize(Role state, const std::uint8_t* codes, const float* scales, std::span<float> numbers);

}  // namespace aliquot
