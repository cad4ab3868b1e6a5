/// \file
/// The update of one block of quantized states by a warp, in two ways with the same bits: as the rule and
/// quantization.h say it, for any numbers; and by tables, which is three times faster. What a block needs is loaded
/// before anything is computed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "aliquot/rules.h"
#include "cuda/quantized_block.h"
#include "cuda/shared_tables.h"

namespace aliquot::cuda {

template <typename R, std::size_t i>
using CodesOfState = CodesOf<R::states[i], float>;

template <typename Codes>
__device__ Numbers<AnyRange> decoded(const CodeWords& words, float scale) {
  return Numbers<AnyRange>::made([&](unsigned i) {
    const auto code = static_cast<typename Codes::Code>(words.of[i / 4] >> (8 * (i % 4)));
    return Codes::decoded(static_cast<float>(code), scale);
  });
}

template <typename Codes, typename At>
__device__ void store_state(const Numbers<AnyRange>& numbers, const Places<At>& places, std::uint8_t* codes,
                            float* scale_of_block) {
  const auto [least, greatest] = extremes<Codes>(numbers);
  const float scale = Codes::scale_of(least, greatest), inverse = Scale<float>::inverse(scale);
  CodeWords words{};
#pragma unroll
  for (unsigned i = 0; i < block_share; ++i) {
    const auto code = static_cast<typename Codes::Code>(Codes::encoded(numbers.of[i], inverse));
    words.of[i / 4] |= std::uint32_t{static_cast<std::uint8_t>(code)} << (8 * (i % 4));
  }
  store_codes(words, places, codes);
  store_scale(scale, scale_of_block);
}

template <typename R, typename At, typename Masters, typename Grad, std::size_t... i>
__device__ void update_by_rule(const Places<At>& places, const Masters& masters, const Grad* grad,
                               const QuantizedArrays<sizeof...(i)>& arrays, const typename R::Scalars& s,
                               float grad_scale, std::size_t slot, std::index_sequence<i...>) {
  const float scales[] = {arrays.scales[i][slot]...};
  Numbers<AnyRange> p = loaded<AnyRange>(places, [&](auto at) { return masters.load(at); });
  const Numbers<AnyRange> g = loaded<AnyRange>(places, [&](auto at) { return at.read(grad); });
  Numbers<AnyRange> states[] = {decoded<CodesOfState<R, i>>(loaded_codes(places, arrays.codes[i]), scales[i])...};
  R::update(s, p, g * grad_scale, states[i]...);
  store(p, places, masters);
  (store_state<CodesOfState<R, i>>(states[i], places, arrays.codes[i], &arrays.scales[i][slot]), ...);
}

/// Whether what update_by_tables() computes with these, and with moments that are in_range(), is in MiddleRange: the
/// divisor is from 2^-51 to 2^23.
inline __device__ bool in_range(const AdamStep& s) {
  return s.inverse_correction2 >= 1 && s.eps >= 0 && s.inverse_correction2 + s.eps <= 0x1p10F &&
         fabsf(s.minus_step_size) <= 0x1p30F;
}
inline __device__ bool in_range(float scale) {
  constexpr auto least = std::bit_cast<std::uint32_t>(0x1p-100F), range = std::bit_cast<std::uint32_t>(0x1p24F) - least;
  return __float_as_uint(fabsf(scale)) - least <= range;
}
/// Of a thread's part of a block of which the scales are: zeros are fine in `exp_avg` and no others that are so small.
inline __device__ bool in_range(const Numbers<MiddleRange>& exp_avg, const Numbers<MiddleRange>& exp_avg_sq,
                                float minus_step_size) {
  unsigned least = ~0U, least_but_zero = ~0U;  // of the bits; of twice the sizes' less one, where zero comes last
#pragma unroll
  for (unsigned i = 0; i < block_share; ++i) {
    least = min(least, __float_as_uint(exp_avg_sq.of[i]));
    least_but_zero = min(least_but_zero, 2 * __float_as_uint(exp_avg.of[i]) - 1);
  }
  const float size = __uint_as_float(least_but_zero / 2);  // NaN if all are zeros
  return least >= __float_as_uint(0x1p-101F) && !(size * fabsf(minus_step_size) < 0x1p-99F);
}

/// False: some number is out of range, and nothing was stored. Only with scalars that are in_range().
template <typename R, typename Masters, typename Grad>
__device__ bool update_by_tables(const Places<Whole>& places, const Masters& masters, const Grad* grad,
                                 const QuantizedArrays<2>& arrays, const SharedTables& tables,
                                 const typename R::Scalars& s, float grad_scale, std::size_t slot) {
  const auto [m_codes, v_codes] = arrays.codes;
  const auto [m_scales, v_scales] = arrays.scales;
  const float m_scale = m_scales[slot], v_scale = v_scales[slot];
  const CodeWords m_words = loaded_codes(places, m_codes), v_words = loaded_codes(places, v_codes);
  Numbers<MiddleRange> p = loaded<MiddleRange>(places, [&](auto at) { return masters.load(at); });
  const Numbers<MiddleRange> g = loaded<MiddleRange>(places, [&](auto at) { return at.read(grad); });
  Numbers<MiddleRange> m = decoded<Signed>(tables, m_words, m_scale), v = decoded<Unsigned>(tables, v_words, v_scale);
  R::update(s, p, g * grad_scale, m, v);
  const auto [least_m, greatest_m] = extremes<Signed>(m);
  const float new_m_scale = greatest_m < -least_m ? -least_m : -greatest_m;
  const float new_v_scale = extremes<Unsigned>(v).greatest;
  const bool fine = in_range(new_m_scale) && in_range(new_v_scale) && in_range(m, v, s.adam.minus_step_size);
  if (!__all_sync(all_of_warp, fine)) return false;
  store(p, places, masters);
  store_codes(encoded<Signed>(tables, m, new_m_scale), places, m_codes);
  store_codes(encoded<Unsigned>(tables, v, new_v_scale), places, v_codes);
  store_scale(new_m_scale, m_scales + slot);
  store_scale(new_v_scale, v_scales + slot);
  return true;
}

}  // namespace aliquot::cuda
