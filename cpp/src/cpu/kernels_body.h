/// \file
/// Every kernel, once, over 16 lanes. The file that includes it defines what 16 lanes are on its instruction set:
///   Floats   16 fp32 numbers: all, load, store, load_first, store_first, store_past_cache, fence, + - * /, sqrt
///   Squares  16 fp64 sums of squares and the count of non-finite numbers seen: add, lanes
/// Lane i of a block always meets elements i, i + 16, ...; with IEEE arithmetic and no contraction (-ffp-contract=off)
/// the bits are then the same everywhere. Floats must have internal linkage, and no inline function of the standard
/// library is called here: the linker would merge what two files emit for two instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernel_table.h"

namespace aliquot::cpu {

inline constexpr std::size_t lane_count = 16;

/// 16 elements, `begin` elements into any array.
template <typename Floats>
struct Whole {
  std::size_t begin;
  Floats load(const float* array) const { return Floats::load(array + begin); }
  void store(Floats value, float* array) const { value.store(array + begin); }
};

/// The same, with stores that bypass the cache; arrays stored to are aligned to 64 bytes.
template <typename Floats>
struct WholePastCache : Whole<Floats> {
  void store(Floats value, float* array) const { value.store_past_cache(array + this->begin); }
};

/// The last 1 to 15 elements; the lanes beyond them are loaded as zeros and not stored.
template <typename Floats>
struct Rest {
  std::size_t begin;
  std::size_t count;
  Floats load(const float* array) const { return Floats::load_first(array + begin, count); }
  void store(Floats value, float* array) const { value.store_first(array + begin, count); }
};

template <typename Floats, template <typename> class Each = Whole, typename Body>
void for_lanes(std::size_t begin, std::size_t end, const Body& body) {
  for (; end - begin >= lane_count; begin += lane_count) body(Each<Floats>{begin});
  if (begin < end) body(Rest<Floats>{begin, end - begin});
}

template <typename Squares>
GradStatistics total(const Squares& squares) {
  double lanes[lane_count];
  squares.lanes(lanes);
  GradStatistics result{0, squares.non_finite};
  for (double lane : lanes) result.square_sum += lane;
  return result;
}

template <typename Floats, typename Squares>
struct Kernels {
  static void copy(const float* source, float* destination, std::size_t count) {
    for_lanes<Floats>(0, count, [=](auto at) { at.store(at.load(source), destination); });
  }

  static void copy_past_cache(const float* source, float* destination, std::size_t count) {
    const std::size_t past_line = reinterpret_cast<std::uintptr_t>(destination) / sizeof(float) % lane_count;
    std::size_t head = (lane_count - past_line) % lane_count;
    if (head > count) head = count;
    copy(source, destination, head);
    source += head;
    destination += head;
    for_lanes<Floats, WholePastCache>(0, count - head, [=](auto at) { at.store(at.load(source), destination); });
    Floats::fence();
  }

  static void scale(float* data, std::size_t count, float factor) {
    const Floats factors = Floats::all(factor);
    for_lanes<Floats>(0, count, [=](auto at) { at.store(at.load(data) * factors, data); });
  }

  static GradStatistics statistics(const float* data, std::size_t count) {
    Squares squares;
    for_lanes<Floats>(0, count, [&](auto at) { squares.add(at.load(data)); });
    return total(squares);
  }

  template <typename Lanes>
  static Floats scaled_sum(Lanes at, const Reduction& reduction) {
    Floats sum = at.load(reduction.parts[0]);
    for (std::size_t part = 1; part < reduction.part_count; ++part) sum = sum + at.load(reduction.parts[part]);
    return sum * Floats::all(reduction.factor);
  }

  /// result = value(at) in [begin, end)
  template <template <typename> class Each = Whole, typename Value>
  static GradStatistics assign(const Reduction& reduction, std::size_t begin, std::size_t end, const Value& value) {
    Squares squares;
    for_lanes<Floats, Each>(begin, end, [&](auto at) {
      const Floats floats = value(at);
      at.store(floats, reduction.result);
      squares.add(floats);
    });
    return total(squares);
  }

  static GradStatistics reduce_assign(const Reduction& r, std::size_t begin, std::size_t end) {
    return assign(r, begin, end, [&](auto at) { return scaled_sum(at, r); });
  }

  static GradStatistics reduce_assign_past_cache(const Reduction& r, std::size_t begin, std::size_t end) {
    const auto statistics = assign<WholePastCache>(r, begin, end, [&](auto at) { return scaled_sum(at, r); });
    Floats::fence();
    return statistics;
  }

  static GradStatistics reduce_add(const Reduction& r, std::size_t begin, std::size_t end) {
    return assign(r, begin, end, [&](auto at) { return at.load(r.result) + scaled_sum(at, r); });
  }

  static void adamw(const AdamWScalars& s, float* param, const float* grad, float* exp_avg, float* exp_avg_sq,
                    std::size_t count) {
    const Floats grad_scale = Floats::all(s.grad_scale), decay = Floats::all(s.decay), eps = Floats::all(s.eps);
    const Floats beta2 = Floats::all(s.beta2), one_minus_beta1 = Floats::all(s.one_minus_beta1);
    const Floats one_minus_beta2 = Floats::all(s.one_minus_beta2);
    const Floats inverse_correction2 = Floats::all(s.inverse_correction2);
    const Floats minus_step_size = Floats::all(s.minus_step_size);
    for_lanes<Floats>(0, count, [=](auto at) {
      const Floats g = at.load(grad) * grad_scale;
      const Floats m0 = at.load(exp_avg);
      const Floats m = m0 + (g - m0) * one_minus_beta1;
      const Floats v = at.load(exp_avg_sq) * beta2 + one_minus_beta2 * g * g;
      const Floats denominator = sqrt(v) * inverse_correction2 + eps;
      at.store(m, exp_avg);
      at.store(v, exp_avg_sq);
      at.store(at.load(param) * decay + minus_step_size * m / denominator, param);
    });
  }

  static constexpr KernelTable table() {
    return {copy, copy_past_cache, scale, statistics, reduce_assign, reduce_assign_past_cache, reduce_add, adamw};
  }
};

}  // namespace aliquot::cpu
