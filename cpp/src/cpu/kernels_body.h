/// \file
/// Every kernel, once, over 16 lanes. The file that includes it defines what 16 lanes are on its instruction set:
///   Floats   16 fp32 numbers: all, load, store, load_first, store_first, store_past_cache, fence, + - * /, sqrt, sign,
///            lesser, greater
///   Halves   16 patterns of 16 bits: load, store; widened(Bf16 or Fp16, Halves), rounded(Bf16 or Fp16, Floats);
///            join(high, low) and split(Floats), which are those of split_master.h
///   Bytes    16 of 8 bits: load, store; widened(std::int8_t or std::uint8_t, Bytes), cut_off(Floats)
///   Squares  16 fp64 sums of squares and the count of non-finite numbers seen: add, lanes
/// Lane i of a block always meets elements i, i + 16, ...; with IEEE arithmetic and no contraction (-ffp-contract=off)
/// the bits are then the same everywhere. Floats must have internal linkage, and no inline function of the standard
/// library is called here: the linker would merge what two files emit for two instruction sets.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <variant>

#include "cpu/kernel_table.h"
#include "cpu/lanes.h"
#include "cpu/quantized_body.h"

namespace aliquot::cpu {

/// The masters of each form: load() gives fp32 values, store() writes them and, where that is another array, the
/// parameter.
struct ParamItself {
  float* param;
  auto load(auto at) const { return at.load(param); }
  void store(auto at, auto values) const { at.store(values, param); }
};

template <typename Param>
struct BesideParam {
  Param* param;
  float* master;
  auto load(auto at) const { return at.load(master); }
  void store(auto at, auto values) const {
    at.store(values, master);
    at.store(values, param);
  }
};

struct InTwoHalves {
  std::uint16_t* param;
  std::uint16_t* low;
  auto load(auto at) const { return join(at.load_bits(param), at.load_bits(low)); }
  void store(auto at, auto values) const {
    const auto halves = split(values);
    at.store_bits(halves.high, param);
    at.store_bits(halves.low, low);
  }
};

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

  // The masters that the kernel at a place of Forms finds.
  static ParamItself find(const WeightArrays& a, const ParamItself*) { return {static_cast<float*>(a.param)}; }
  template <typename Param>
  static BesideParam<Param> find(const WeightArrays& a, const BesideParam<Param>*) {
    return {static_cast<Param*>(a.param), static_cast<float*>(a.master)};
  }
  static InTwoHalves find(const WeightArrays& a, const InTwoHalves*) {
    return {static_cast<std::uint16_t*>(a.param), static_cast<std::uint16_t*>(a.master)};
  }

  template <typename R>
  using StatesOf = std::array<Floats, R::states.size()>;

  template <typename R, typename Lanes>
  static StatesOf<R> load_states(Lanes at, const UpdateArrays& arrays) {
    StatesOf<R> states;
    for (std::size_t i = 0; i < R::states.size(); ++i) states[i] = at.load(arrays.states[i]);
    return states;
  }
  template <typename R, typename Lanes>
  static void store_states(Lanes at, const StatesOf<R>& states, const UpdateArrays& arrays) {
    for (std::size_t i = 0; i < R::states.size(); ++i) at.store(states[i], arrays.states[i]);
  }

  template <typename R, typename Masters>
  static void update(const typename R::Scalars& scalars, float grad_scale, const UpdateArrays& arrays,
                     std::size_t count) {
    const Masters masters = find(arrays, static_cast<const Masters*>(nullptr));
    for_lanes<Floats>(0, count, [=](auto at) {
      Floats p = masters.load(at);
      StatesOf<R> states = load_states<R>(at, arrays);
      const Floats g = at.load(arrays.grad) * grad_scale;
      std::apply([&](auto&... each) { R::update(scalars, p, g, each...); }, states);
      store_states<R>(at, states, arrays);
      masters.store(at, p);
    });
  }

  template <typename R, typename Masters>
  static void update_block(const typename R::Scalars& scalars, float grad_scale, const QuantizedArrays& arrays,
                           std::size_t count) {
    const Masters masters = find(arrays, static_cast<const Masters*>(nullptr));
    QuantizedBlock<R, Floats>::update(scalars, grad_scale, masters, arrays, count);
  }

  template <typename R, typename Masters>
  static NormSquares take(const typename R::Scalars& scalars, float grad_scale, const UpdateArrays& arrays,
                          std::size_t count) {
    const Masters masters = find(arrays, static_cast<const Masters*>(nullptr));
    Squares params, directions;
    for_lanes<Floats>(0, count, [&](auto at) {
      const Floats p = masters.load(at), g = at.load(arrays.grad) * grad_scale;
      StatesOf<R> states = load_states<R>(at, arrays);
      std::apply([&](auto&... each) { R::take(scalars, g, each...); }, states);
      params.add(p);
      directions.add(std::apply([&](auto... each) { return R::direction(scalars, p, each...); }, states));
      store_states<R>(at, states, arrays);
    });
    return {total(params).square_sum, total(directions).square_sum};
  }

  template <typename R, typename Masters>
  static void move(const typename R::Scalars& scalars, float ratio, const UpdateArrays& arrays, std::size_t count) {
    const Masters masters = find(arrays, static_cast<const Masters*>(nullptr));
    for_lanes<Floats>(0, count, [=](auto at) {
      Floats p = masters.load(at);
      const StatesOf<R> states = load_states<R>(at, arrays);
      R::move(scalars, ratio, p, std::apply([&](auto... each) { return R::direction(scalars, p, each...); }, states));
      masters.store(at, p);
    });
  }

  template <typename R>
  static constexpr Updates<R> updates_by() {
    using Bf16Beside = BesideParam<Bf16>;
    using Fp16Beside = BesideParam<Fp16>;
    if constexpr (Normed<R>) {
      return {{take<R, ParamItself>, take<R, Bf16Beside>, take<R, Fp16Beside>, take<R, InTwoHalves>},
              {move<R, ParamItself>, move<R, Bf16Beside>, move<R, Fp16Beside>, move<R, InTwoHalves>}};
    } else if constexpr (Quantized<R>) {
      return {{update_block<R, ParamItself>, update_block<R, Bf16Beside>, update_block<R, Fp16Beside>,
               update_block<R, InTwoHalves>}};
    } else {
      return {{update<R, ParamItself>, update<R, Bf16Beside>, update<R, Fp16Beside>, update<R, InTwoHalves>}};
    }
  }

  template <typename... R>
  static constexpr UpdatesOf<std::variant<R...>> updates(const UpdatesOf<std::variant<R...>>*) {
    return {{updates_by<R>()...}};
  }

  template <typename From, typename To>
  static void cast(const void* from, void* to, std::size_t count) {
    const auto* const source = static_cast<const From*>(from);
    auto* const destination = static_cast<To*>(to);
    for_lanes<Floats>(0, count, [=](auto at) { at.store(at.load(source), destination); });
  }

  static constexpr KernelTable table() {
    return {.copy = copy,
            .copy_past_cache = copy_past_cache,
            .scale = scale,
            .statistics = statistics,
            .reduce_assign = reduce_assign,
            .reduce_assign_past_cache = reduce_assign_past_cache,
            .reduce_add = reduce_add,
            .updates = updates(static_cast<const UpdatesOf<Rule>*>(nullptr)),
            .cast = {{cast<float, float>, cast<float, Bf16>, cast<float, Fp16>},
                     {cast<Bf16, float>, cast<Bf16, Bf16>, cast<Bf16, Fp16>},
                     {cast<Fp16, float>, cast<Fp16, Bf16>, cast<Fp16, Fp16>}}};
  }
};

}  // namespace aliquot::cpu
