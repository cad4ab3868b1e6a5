// The kernels with 16 lanes as two AVX2 registers.
#include <immintrin.h>

#include <cstring>

#include "cpu/kernels_body.h"

namespace aliquot::cpu {
namespace {

struct Floats {
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
