/// \file
/// Several floats of one thread, side by side, as rules.h takes them. Their roots and quotients have the bits that the
/// compiler's have, which are those of the host; but a single branch for all, instead of one for each, so that they
/// pass the pipes together.
#pragma once

#include <cmath>
#include <cstddef>

namespace aliquot::cuda {

template <unsigned count>
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

  /// Of the bits, which order floats that are not negative as they are ordered; negative ones are above all others.
  struct Bounds {
    unsigned least = ~0U, greatest = 0;
  };
  __device__ Bounds bounds() const {
    Bounds bounds;
#pragma unroll
    for (const float value : of) {
      bounds = {min(bounds.least, __float_as_uint(value)), max(bounds.greatest, __float_as_uint(value))};
    }
    return bounds;
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

  /// Rounded right by one step of Newton's, as the compiler does it, where no power of 2 is out of range.
  friend __device__ Floats sqrt(const Floats& x) {
    const Bounds bounds = x.bounds();
    if (bounds.least < __float_as_uint(0x1p-101F) || bounds.greatest > __float_as_uint(0x1.FFFFFEp127F)) {
      return made([&](unsigned i) { return std::sqrt(x.of[i]); });
    }
    return made([&](unsigned i) {
      float inverse;
      asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x.of[i]));
      const float root = x.of[i] * inverse;
      return __fmaf_rn(__fmaf_rn(-root, root, x.of[i]), 0.5F * inverse, root);
    });
  }
  friend __device__ Floats operator/(const Floats& a, const Floats& b) {
    const Bounds below = b.bounds(), above = made([&](unsigned i) { return std::fabs(a.of[i]); }).bounds();
    if (below.least < __float_as_uint(0x1p-60F) || below.greatest > __float_as_uint(0x1p30F) ||
        above.least < __float_as_uint(0x1p-90F) || above.greatest > __float_as_uint(0x1p60F)) {
      return made([&](unsigned i) { return a.of[i] / b.of[i]; });
    }
    return made([&](unsigned i) {
      float inverse;
      asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b.of[i]));
      inverse = __fmaf_rn(inverse, __fmaf_rn(-b.of[i], inverse, 1), inverse);
      const float quotient = a.of[i] * inverse;
      return __fmaf_rn(inverse, __fmaf_rn(-b.of[i], quotient, a.of[i]), quotient);
    });
  }
};

}  // namespace aliquot::cuda
