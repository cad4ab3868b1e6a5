// The oracle, and the kernels of machines without AVX2: 16 lanes as loops, which any compiler can read.
#include <bit>
#include <cmath>
#include <cstring>

#include "aliquot/split_master.h"
#include "cpu/kernels_body.h"

namespace aliquot::cpu {
namespace {

struct Halves {
  std::uint16_t lane[lane_count];

  static Halves load(const std::uint16_t* from) {
    Halves result;
    std::memcpy(result.lane, from, sizeof result.lane);
    return result;
  }
  void store(std::uint16_t* to) const { std::memcpy(to, lane, sizeof lane); }
};

struct Bytes {
  std::uint8_t lane[lane_count];

  static Bytes load(const void* from) {
    Bytes result;
    std::memcpy(result.lane, from, sizeof result.lane);
    return result;
  }
  void store(void* to) const { std::memcpy(to, lane, sizeof lane); }
};

struct Floats {
  using Halves = cpu::Halves;
  using Bytes = cpu::Bytes;
  float lane[lane_count];

  static Floats all(float value) {
    Floats result;
    for (float& lane : result.lane) lane = value;
    return result;
  }
  static Floats load(const float* from) {
    Floats result;
    std::memcpy(result.lane, from, sizeof result.lane);
    return result;
  }
  static Floats load_first(const float* from, std::size_t count) {
    Floats result = all(0);
    std::memcpy(result.lane, from, count * sizeof(float));
    return result;
  }
  void store(float* to) const { std::memcpy(to, lane, sizeof lane); }
  void store_first(float* to, std::size_t count) const { std::memcpy(to, lane, count * sizeof(float)); }
  void store_past_cache(float* to) const { store(to); }
  static void fence() {}
};

template <typename Operation>
Floats lane_by_lane(const Floats& a, const Floats& b, Operation operation) {
  Floats result;
  for (std::size_t i = 0; i < lane_count; ++i) result.lane[i] = operation(a.lane[i], b.lane[i]);
  return result;
}

Floats operator+(const Floats& a, const Floats& b) {
  return lane_by_lane(a, b, [](float x, float y) { return x + y; });
}
Floats operator-(const Floats& a, const Floats& b) {
  return lane_by_lane(a, b, [](float x, float y) { return x - y; });
}
Floats operator*(const Floats& a, const Floats& b) {
  return lane_by_lane(a, b, [](float x, float y) { return x * y; });
}
Floats operator/(const Floats& a, const Floats& b) {
  return lane_by_lane(a, b, [](float x, float y) { return x / y; });
}
Floats sqrt(const Floats& a) {
  return lane_by_lane(a, a, [](float x, float) { return std::sqrt(x); });
}
Floats sign(const Floats& a) {
  return lane_by_lane(a, a, [](float x, float) { return aliquot::sign(x); });
}
Floats lesser(const Floats& a, const Floats& b) {
  return lane_by_lane(a, b, [](float x, float y) { return aliquot::lesser(x, y); });
}
Floats greater(const Floats& a, const Floats& b) {
  return lane_by_lane(a, b, [](float x, float y) { return aliquot::greater(x, y); });
}

float widened(Bf16 element) { return std::bit_cast<float>(std::uint32_t{element.bits} << 16); }

float widened(Fp16 element) {
  const std::uint32_t sign = (element.bits & 0x8000U) << 16, exponent = element.bits >> 10 & 0x1FU;
  const std::uint32_t mantissa = element.bits & 0x3FFU;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return sign != 0 ? -magnitude : magnitude;
  }
  if (exponent == 31) {
    const std::uint32_t quiet = mantissa != 0 ? 0x400000U : 0;
    return std::bit_cast<float>(sign | 0x7F800000U | quiet | mantissa << 13);
  }
  return std::bit_cast<float>(sign | (exponent + 127 - 15) << 23 | mantissa << 13);
}

/// The upper bits, rounded to nearest even by a carry out of the lower `drop`.
std::uint32_t rounded_shift(std::uint32_t bits, unsigned drop) {
  const std::uint32_t odd = bits >> drop & 1U;
  return (bits + (1U << (drop - 1)) - 1 + odd) >> drop;
}

std::uint16_t rounded(Bf16, float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>(std::isnan(value) ? bits >> 16 | 0x40U : rounded_shift(bits, 16));
}

std::uint16_t rounded(Fp16, float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000U, magnitude = bits & 0x7FFFFFFFU;
  const auto with_sign = [sign](std::uint32_t rest) { return static_cast<std::uint16_t>(sign | rest); };
  if (magnitude > 0x7F800000U) return with_sign(0x7E00U | (magnitude >> 13 & 0x3FFU));
  if (magnitude >= 0x47800000U) return with_sign(0x7C00U);  // 2^16 and more
  if (magnitude < 0x38800000U) {                            // less than the smallest normal number, 2^-14
    return with_sign(static_cast<std::uint32_t>(std::nearbyint(std::bit_cast<float>(magnitude) * 0x1p24F)));
  }
  return with_sign(rounded_shift(magnitude - ((127U - 15U) << 23), 13));
}

template <Rounded T>
Floats widened(T, const Halves& halves) {
  Floats result;
  for (std::size_t i = 0; i < lane_count; ++i) result.lane[i] = widened(T{halves.lane[i]});
  return result;
}

template <Rounded T>
Halves rounded(T element, const Floats& values) {
  Halves result;
  for (std::size_t i = 0; i < lane_count; ++i) result.lane[i] = rounded(element, values.lane[i]);
  return result;
}

template <Code T>
Floats widened(T, const Bytes& bytes) {
  Floats result;
  for (std::size_t i = 0; i < lane_count; ++i) result.lane[i] = static_cast<T>(bytes.lane[i]);
  return result;
}

Bytes cut_off(const Floats& values) {
  Bytes result;
  for (std::size_t i = 0; i < lane_count; ++i) {
    result.lane[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(values.lane[i]));
  }
  return result;
}

Floats join(const Halves& high, const Halves& low) {
  Floats result;
  for (std::size_t i = 0; i < lane_count; ++i) result.lane[i] = join_master({high.lane[i], low.lane[i]});
  return result;
}

struct TwoHalves {
  Halves high, low;
};

TwoHalves split(const Floats& values) {
  TwoHalves result;
  for (std::size_t i = 0; i < lane_count; ++i) {
    const SplitMaster halves = split_master(values.lane[i]);
    result.high.lane[i] = halves.high;
    result.low.lane[i] = halves.low;
  }
  return result;
}

struct Squares {
  double sum[lane_count] = {};
  std::uint64_t non_finite = 0;

  void add(const Floats& values) {
    for (std::size_t i = 0; i < lane_count; ++i) {
      const bool finite = std::isfinite(values.lane[i]);
      const double value = finite ? values.lane[i] : 0.0;
      sum[i] += value * value;
      non_finite += !finite;
    }
  }
  void lanes(double* to) const { std::memcpy(to, sum, sizeof sum); }
};

}  // namespace

const KernelTable plain_table = Kernels<Floats, Squares>::table();

}  // namespace aliquot::cpu
