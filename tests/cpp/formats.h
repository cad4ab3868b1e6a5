/// \file
/// 16-bit floating point in plain C++, written from the definition of rounding to nearest even: what the kernels'
/// conversions are compared with. And reproducible numbers.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "aliquot/dtype.h"

namespace aliquot::test {

inline constexpr float infinity = std::numeric_limits<float>::infinity();
inline constexpr float quiet_nan = std::numeric_limits<float>::quiet_NaN();

/// `value` rounded to a binary format of `digits` significant bits, smallest exponent `least` and largest number
/// `most`; ties to even. Exact in double.
inline float nearest(float value, int digits, int least, double most) {
  if (!std::isfinite(value) || value == 0) return value;
  const int exponent = std::max(std::ilogb(value), least);
  const double unit = std::ldexp(1.0, exponent - digits + 1);
  const double result = std::nearbyint(static_cast<double>(value) / unit) * unit;
  return std::abs(result) > most ? std::copysign(infinity, value) : static_cast<float>(result);
}

/// A float that `dtype` can represent, next to `value`.
inline float representable(float value, DType dtype) {
  switch (dtype) {
    case DType::fp32: return value;
    case DType::bf16: return nearest(value, 8, -126, std::ldexp(2.0 - std::ldexp(1.0, -7), 127));
    case DType::fp16: return nearest(value, 11, -14, 65504);
  }
  return value;
}

inline std::uint16_t bf16_bits(float value) {
  if (std::isnan(value)) return 0x7FFF;
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(representable(value, DType::bf16)) >> 16);
}

inline std::uint16_t fp16_bits(float value) {
  if (std::isnan(value)) return 0x7FFF;
  const float rounded = representable(value, DType::fp16);
  const auto sign = static_cast<std::uint16_t>(std::signbit(rounded) ? 0x8000 : 0);
  const float size = std::abs(rounded);
  if (std::isinf(size)) return sign | 0x7C00;
  const int exponent = size == 0 ? -15 : std::ilogb(size);
  if (exponent < -14) return static_cast<std::uint16_t>(sign | static_cast<int>(std::ldexp(size, 24)));
  const int fraction = static_cast<int>(std::ldexp(size, 10 - exponent)) - 1024;
  return static_cast<std::uint16_t>(sign | ((exponent + 15) << 10) | fraction);
}

/// The bytes of `values` in `dtype`.
inline std::vector<std::byte> encoded(const std::vector<float>& values, DType dtype) {
  std::vector<std::byte> bytes(values.size() * size_of(dtype));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::fp32) {
      std::memcpy(&bytes[i * 4], &values[i], 4);
    } else {
      const std::uint16_t bits = dtype == DType::bf16 ? bf16_bits(values[i]) : fp16_bits(values[i]);
      std::memcpy(&bytes[i * 2], &bits, 2);
    }
  }
  return bytes;
}

/// `count` numbers in (-2, 2), of very different sizes, that `dtype` can represent.
inline std::vector<float> numbers(std::size_t count, std::uint32_t seed, DType dtype = DType::fp32) {
  std::vector<float> values(count);
  for (float& value : values) {
    seed = seed * 1664525U + 1013904223U;
    const float plain = static_cast<float>(static_cast<std::int32_t>(seed)) * 0x1p-30F;
    value = representable(std::ldexp(plain, -static_cast<int>(seed >> 4 & 15)), dtype);
  }
  return values;
}

}  // namespace aliquot::test
