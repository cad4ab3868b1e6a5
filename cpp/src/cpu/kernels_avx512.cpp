// The kernels with 16 lanes as one AVX-512 register.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's own intrinsics start from such a register (bug 105593)
#endif
#include <immintrin.h>

#include "cpu/kernels_body.h"

namespace aliquot::cpu {
namespace {

__mmask16 first_lanes(std::size_t count) { return static_cast<__mmask16>((1u << count) - 1); }

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
  __m512 value;

  static Floats all(float value) { return {_mm512_set1_ps(value)}; }
  static Floats load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static Floats load_first(const float* from, std::size_t count) {
    return {_mm512_maskz_loadu_ps(first_lanes(count), from)};
  }
  void store(float* to) const { _mm512_storeu_ps(to, value); }
  void store_first(float* to, std::size_t count) const { _mm512_mask_storeu_ps(to, first_lanes(count), value); }
  void store_past_cache(float* to) const { _mm512_stream_ps(to, value); }
  static void fence() { _mm_sfence(); }
};

Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.value, b.value)}; }
Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.value, b.value)}; }
Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.value, b.value)}; }
Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.value, b.value)}; }
Floats sqrt(Floats a) { return {_mm512_sqrt_ps(a.value)}; }
Floats lesser(Floats a, Floats b) { return {_mm512_min_ps(a.value, b.value)}; }
Floats greater(Floats a, Floats b) { return {_mm512_max_ps(a.value, b.value)}; }
Floats sign(Floats a) {
  const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1);
  const __m512 above = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.value, zero, _CMP_GT_OQ), one);
  return {_mm512_sub_ps(above, _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.value, zero, _CMP_LT_OQ), one))};
}

Floats floats_of(__m512i bits) { return {_mm512_castsi512_ps(bits)}; }
__m512i bits_of(Floats floats) { return _mm512_castps_si512(floats.value); }
__m512i bits_of(Halves halves) { return _mm512_cvtepu16_epi32(halves.value); }
Halves lower_halves_of(__m512i bits) { return {_mm512_cvtepi32_epi16(bits)}; }

Floats widened(Bf16, Halves halves) { return floats_of(_mm512_slli_epi32(bits_of(halves), 16)); }

Halves rounded(Bf16, Floats values) {
  const __m512i bits = bits_of(values);
  const __m512i upper = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_epi32(upper, _mm512_set1_epi32(1));
  const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
  const __m512i nearest = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
  const __m512i quiet = _mm512_or_epi32(upper, _mm512_set1_epi32(0x40));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(values.value, values.value, _CMP_UNORD_Q);
  return lower_halves_of(_mm512_mask_mov_epi32(nearest, is_nan, quiet));
}

Floats widened(Fp16, Halves halves) { return {_mm512_cvtph_ps(halves.value)}; }
Halves rounded(Fp16, Floats values) { return {_mm512_cvtps_ph(values.value, _MM_FROUND_TO_NEAREST_INT)}; }

Floats widened(std::int8_t, Bytes bytes) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes.value))}; }
Floats widened(std::uint8_t, Bytes bytes) { return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes.value))}; }
Bytes cut_off(Floats values) { return {_mm512_cvtepi32_epi8(_mm512_cvttps_epi32(values.value))}; }

Floats join(Halves high, Halves low) {
  const __m512i below = bits_of(low);
  const __m512i upper = _mm512_sub_epi32(bits_of(high), _mm512_srli_epi32(below, 15));
  return floats_of(_mm512_or_epi32(_mm512_slli_epi32(upper, 16), below));
}

struct TwoHalves {
  Halves high, low;
};

TwoHalves split(Floats values) {
  const __m512i bits = bits_of(values);
  const __m512i above = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x8000)), 16);
  return {lower_halves_of(above), lower_halves_of(bits)};
}

constexpr int nan_or_infinity = 0x01 | 0x80 | 0x08 | 0x10;  // quiet and signaling NaN, +infinity, -infinity

struct Squares {
  __m512d low = {}, high = {};
  std::uint64_t non_finite = 0;

  // The square of an fp32 number is exact in fp64, so the fused instruction rounds just as two would.
  void add(Floats floats) {
    __m512 values = floats.value;
    const __mmask16 special = _mm512_fpclass_ps_mask(values, nan_or_infinity);
    if (special != 0) [[unlikely]] {
      non_finite += static_cast<unsigned>(__builtin_popcount(special));
      values = _mm512_maskz_mov_ps(static_cast<__mmask16>(~special), values);
    }
    const __m512d first = _mm512_cvtps_pd(_mm512_castps512_ps256(values));
    const __m512d second = _mm512_cvtps_pd(_mm512_extractf32x8_ps(values, 1));
    low = _mm512_fmadd_pd(first, first, low);
    high = _mm512_fmadd_pd(second, second, high);
  }
  void lanes(double* to) const {
    _mm512_storeu_pd(to, low);
    _mm512_storeu_pd(to + 8, high);
  }
};

}  // namespace

const KernelTable avx512_table = Kernels<Floats, Squares>::table();

}  // namespace aliquot::cpu
