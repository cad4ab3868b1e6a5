// The kernels with 16 lanes as two AVX2 registers.
#include <immintrin.h>

#include <cstring>

#include "cpu/kernels_body.h"

namespace aliquot::cpu {
namespace {

struct Halves {
  __m256i value;

  static Halves load(const std::uint16_t* from) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))}; }
  void store(std::uint16_t* to) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value); }
};

struct Bytes {
  __m128i value;

  static Bytes load(const void* from) { return {_mm_loadu_si128(static_cast<const __m128i*>(from))}; }
  void store(void* to) const { _mm_storeu_si128(static_cast<__m128i*>(to), value); }
};

struct Floats {
  using Halves = cpu::Halves;
  using Bytes = cpu::Bytes;
  __m256 low, high;

  static Floats all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
  static Floats load_first(const float* from, std::size_t count) {
    float padded[lane_count] = {};
    std::memcpy(padded, from, count * sizeof(float));
    return load(padded);
  }
  void store(float* to) const {
    _mm256_storeu_ps(to, low);
    _mm256_storeu_ps(to + 8, high);
  }
  void store_first(float* to, std::size_t count) const {
    float padded[lane_count];
    store(padded);
    std::memcpy(to, padded, count * sizeof(float));
  }
  void store_past_cache(float* to) const {
    _mm256_stream_ps(to, low);
    _mm256_stream_ps(to + 8, high);
  }
  static void fence() { _mm_sfence(); }
};

Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
Floats operator/(Floats a, Floats b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
Floats sqrt(Floats a) { return {_mm256_sqrt_ps(a.low), _mm256_sqrt_ps(a.high)}; }
Floats lesser(Floats a, Floats b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
Floats greater(Floats a, Floats b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }

__m256 sign(__m256 a) {
  const __m256 zero = _mm256_setzero_ps(), one = _mm256_set1_ps(1);
  const __m256 above = _mm256_and_ps(_mm256_cmp_ps(a, zero, _CMP_GT_OQ), one);
  return _mm256_sub_ps(above, _mm256_and_ps(_mm256_cmp_ps(a, zero, _CMP_LT_OQ), one));
}
Floats sign(Floats a) { return {sign(a.low), sign(a.high)}; }

/// 16 patterns of 32 bits.
struct Bits {
  __m256i low, high;

  explicit Bits(Floats floats) : low(_mm256_castps_si256(floats.low)), high(_mm256_castps_si256(floats.high)) {}
  /// Zeros above.
  explicit Bits(Halves halves)
      : low(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(halves.value))),
        high(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(halves.value, 1))) {}
  template <typename Change>
  Bits(const Bits& from, const Change& change) : low(change(from.low)), high(change(from.high)) {}
  template <typename Change>
  Bits(const Bits& a, const Bits& b, const Change& change) : low(change(a.low, b.low)), high(change(a.high, b.high)) {}

  Floats floats() const { return {_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)}; }
  /// Of patterns that are zeros above.
  Halves halves() const { return {_mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0b11011000)}; }
};

Floats widened(Bf16, Halves halves) {
  return Bits(Bits(halves), [](__m256i bits) { return _mm256_slli_epi32(bits, 16); }).floats();
}

Halves rounded(Bf16, Floats values) {
  return Bits(Bits(values),
              [](__m256i bits) {
                const __m256i upper = _mm256_srli_epi32(bits, 16);
                const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
                const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
                const __m256i nearest = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
                const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
                const __m256 value = _mm256_castsi256_ps(bits);
                const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
                return _mm256_blendv_epi8(nearest, quiet, is_nan);
              })
      .halves();
}

Floats widened(Fp16, Halves halves) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves.value)),
          _mm256_cvtph_ps(_mm256_extracti128_si256(halves.value, 1))};
}

Halves rounded(Fp16, Floats values) {
  return {_mm256_set_m128i(_mm256_cvtps_ph(values.high, _MM_FROUND_TO_NEAREST_INT),
                           _mm256_cvtps_ph(values.low, _MM_FROUND_TO_NEAREST_INT))};
}

Floats widened(std::int8_t, Bytes bytes) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes.value)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes.value, 8)))};
}
Floats widened(std::uint8_t, Bytes bytes) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes.value)),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes.value, 8)))};
}

Bytes cut_off(Floats values) {
  const __m256i lowest_8 = _mm256_set1_epi32(0xFF);
  const __m256i low = _mm256_and_si256(_mm256_cvttps_epi32(values.low), lowest_8);
  const __m256i high = _mm256_and_si256(_mm256_cvttps_epi32(values.high), lowest_8);
  const __m256i pairs = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0b11011000);
  return {_mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1))};
}

Floats join(Halves high, Halves low) {
  return Bits(Bits(high), Bits(low),
              [](__m256i above, __m256i below) {
                const __m256i upper = _mm256_sub_epi32(above, _mm256_srli_epi32(below, 15));
                return _mm256_or_si256(_mm256_slli_epi32(upper, 16), below);
              })
      .floats();
}

struct TwoHalves {
  Halves high, low;
};

TwoHalves split(Floats values) {
  const Bits bits(values);
  const Bits above(bits,
                   [](__m256i b) { return _mm256_srli_epi32(_mm256_add_epi32(b, _mm256_set1_epi32(0x8000)), 16); });
  const Bits below(bits, [](__m256i b) { return _mm256_and_si256(b, _mm256_set1_epi32(0xFFFF)); });
  return {above.halves(), below.halves()};
}

struct Squares {
  __m256d sum[4] = {};
  std::uint64_t non_finite = 0;

  void add(Floats values) {
    add_half(values.low, sum);
    add_half(values.high, sum + 2);
  }
  void lanes(double* to) const {
    for (int i = 0; i < 4; ++i) _mm256_storeu_pd(to + 4 * i, sum[i]);
  }

 private:
  // The square of an fp32 number is exact in fp64, so the fused instruction rounds just as two would.
  void add_half(__m256 values, __m256d* sums) {
    const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), values);
    const __m256 special = _mm256_cmp_ps(magnitude, _mm256_set1_ps(__builtin_inff()), _CMP_NLT_UQ);
    if (const int mask = _mm256_movemask_ps(special); mask != 0) [[unlikely]] {
      non_finite += static_cast<unsigned>(__builtin_popcount(static_cast<unsigned>(mask)));
      values = _mm256_andnot_ps(special, values);
    }
    const __m256d first = _mm256_cvtps_pd(_mm256_castps256_ps128(values));
    const __m256d second = _mm256_cvtps_pd(_mm256_extractf128_ps(values, 1));
    sums[0] = _mm256_fmadd_pd(first, first, sums[0]);
    sums[1] = _mm256_fmadd_pd(second, second, sums[1]);
  }
};

}  // namespace

const KernelTable avx2_table = Kernels<Floats, Squares>::table();

}  // namespace aliquot::cpu
