/// \file
/// Several floats of one thread, side by side, as rules.h takes them.
#pragma once

#include <cmath>
#include <cstddef>

namespace aliquot::cuda {

/// Roots and quotients as the compiler's are, for any float.
struct AnyRange {
  static __device__ float root(float x) { return std::sqrt(x); }
  static __device__ float quotient(float a, float b) { return a / b; }
};

/// The same bits without a branch, where no power of 2 is out of range.
struct MiddleRange {
  /// Of 2^-101 to 2^127: rounded right by one step of Newton's.
  static __device__ float root(float x) {
    float inverse;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
    const float root = x * inverse;
    return __fmaf_rn(__fmaf_rn(-root, root, x), 0.5F * inverse, root);
  }
  /// |a| from 2^-100 on, or zero, of which the sign is kept; |b| from 2^-100 to 2^25; the quotient below 2^127.
  static __device__ float quotient(float a, float b) {
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
    inverse = __fmaf_rn(inverse, __fmaf_rn(-b, inverse, 1), inverse);
    const float quotient = a * inverse;
    return __fmaf_rn(-inverse, __fmaf_rn(b, quotient, -a), quotient);
  }
};

template <unsigned count, typename Range>
struct Floats {
  float of[count];

  static __device__ Floats all(float value) {
    return made([&](unsigned) { return value; });
  }
  template <typename Make>
  static __device__ Floats made(const Make& make) {
    Floats floats;
#pragma unroll
    for (unsigned i = 0; i < count; ++i) floats.of[i] = make(i);
    return floats;
  }

  friend __device__ Floats operator+(const Floats& a, const Floats& b) {
    return made([&](unsigned i) { return a.of[i] + b.of[i]; });
  }
  friend __device__ Floats operator-(const Floats& a, const Floats& b) {
    return made([&](unsigned i) { return a.of[i] - b.of[i]; });
  }
  friend __device__ Floats operator*(const Floats& a, const Floats& b) {
    return made([&](unsigned i) { return a.of[i] * b.of[i]; });
  }
  friend __device__ Floats sqrt(const Floats& x) {
    return made([&](unsigned i) { return Range::root(x.of[i]); });
  }
  friend __device__ Floats operator/(const Floats& a, const Floats& b) {
    return made([&](unsigned i) { return Range::quotient(a.of[i], b.of[i]); });
  }
};

}  // namespace aliquot::cuda
