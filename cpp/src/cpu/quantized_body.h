/// \file
/// The update of one block of quantized states, over the lanes of kernels_body.h.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

#include "aliquot/quantization.h"
#include "cpu/kernel_table.h"
#include "cpu/lanes.h"

namespace aliquot::cpu {

/// The new numbers of one state: what their scale is follows from all of them, so they are encoded behind the last.
template <typename Floats>
class NewNumbers {
 public:
  template <typename Lanes>
  void take(Lanes at, Floats numbers) {
    at.store(numbers, numbers_);
    least_ = lesser(numbers, least_);
    greatest_ = greater(numbers, greatest_);
  }

  template <typename Codes>
  void encode(typename Codes::Code* codes, float* scale, std::size_t count) const {
    float least[lane_count], greatest[lane_count];
    least_.store(least);
    greatest_.store(greatest);
    for (std::size_t i = 1; i < lane_count; ++i) {
      if (least[i] < least[0]) least[0] = least[i];
      if (greatest[i] > greatest[0]) greatest[0] = greatest[i];
    }
    *scale = Codes::scale_of(least[0], greatest[0]);
    const float inverse = Scale<Floats>::inverse(*scale);
    for_lanes<Floats>(0, count, [&](auto at) { at.store(Codes::encoded(at.load(numbers_), inverse), codes); });
  }

 private:
  alignas(64) float numbers_[quantization_block];
  Floats least_ = Floats::all(0), greatest_ = Floats::all(0);
};

template <Quantized R, typename Floats>
class QuantizedBlock {
 public:
  template <typename Masters>
  static void update(const typename R::Scalars& scalars, float grad_scale, const Masters& masters,
                     const QuantizedArrays& arrays, std::size_t count) {
    update(scalars, grad_scale, masters, arrays, count, std::make_index_sequence<R::states.size()>());
  }

 private:
  template <std::size_t i>
  using Codes = CodesOf<R::states[i], Floats>;

  template <std::size_t i>
  static auto* codes_of(const QuantizedArrays& arrays) {
    return reinterpret_cast<typename Codes<i>::Code*>(arrays.codes[i]);
  }

  template <typename Masters, std::size_t... i>
  static void update(const typename R::Scalars& scalars, float grad_scale, const Masters& masters,
                     const QuantizedArrays& arrays, std::size_t count, std::index_sequence<i...>) {
    NewNumbers<Floats> news[sizeof...(i)];
    for_lanes<Floats>(0, count, [&](auto at) {
      Floats p = masters.load(at);
      std::array<Floats, sizeof...(i)> states{Codes<i>::decoded(at.load(codes_of<i>(arrays)), *arrays.scales[i])...};
      const Floats g = at.load(arrays.grad) * grad_scale;
      std::apply([&](auto&... each) { R::update(scalars, p, g, each...); }, states);
      (news[i].take(at, states[i]), ...);
      masters.store(at, p);
    });
    (news[i].template encode<Codes<i>>(codes_of<i>(arrays), arrays.scales[i], count), ...);
  }
};

}  // namespace aliquot::cpu
