// The oracle, and the kernels of machines without AVX2: 16 lanes as loops, which any compiler can read.
#include <cmath>
#include <cstring>

#include "cpu/kernels_body.h"

namespace aliquot::cpu {
namespace {

struct Floats {
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
