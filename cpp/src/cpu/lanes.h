/// \file
/// Where 16 lanes are loaded from and stored to. Types of lanes are those that kernels_body.h asks for.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

namespace aliquot::cpu {

inline constexpr std::size_t lane_count = 16;

/// Elements that are neither loaded nor stored as they lie there.
template <typename T>
concept Rounded = requires(T element) { element.bits; };

/// Elements of 8 bits (quantization.h): loaded as the numbers that they are, and stored from numbers, which are cut
/// off.
template <typename T>
concept Code = std::same_as<T, std::int8_t> || std::same_as<T, std::uint8_t>;

/// 16 elements, `begin` elements into any array.
template <typename Floats>
struct Whole {
  using Halves = typename Floats::Halves;
  using Bytes = typename Floats::Bytes;
  std::size_t begin;
  Floats load(const float* array) const { return Floats::load(array + begin); }
  void store(Floats value, float* array) const { value.store(array + begin); }
  Halves load_bits(const std::uint16_t* array) const { return Halves::load(array + begin); }
  void store_bits(Halves value, std::uint16_t* array) const { value.store(array + begin); }
  template <Rounded T>
  Floats load(const T* array) const {
    return widened(T{}, load_bits(&array->bits));
  }
  template <Rounded T>
  void store(Floats value, T* array) const {
    store_bits(rounded(T{}, value), &array->bits);
  }
  template <Code T>
  Floats load(const T* array) const {
    return widened(T{}, Bytes::load(array + begin));
  }
  template <Code T>
  void store(Floats value, T* array) const {
    cut_off(value).store(array + begin);
  }
};

/// The same, with stores that bypass the cache; arrays stored to are aligned to 64 bytes.
template <typename Floats>
struct WholePastCache : Whole<Floats> {
  void store(Floats value, float* array) const { value.store_past_cache(array + this->begin); }
};

/// The last 1 to 15 elements; the lanes beyond them are loaded as zeros and not stored.
template <typename Floats>
struct Rest {
  using Halves = typename Floats::Halves;
  using Bytes = typename Floats::Bytes;
  std::size_t begin;
  std::size_t count;
  Floats load(const float* array) const { return Floats::load_first(array + begin, count); }
  void store(Floats value, float* array) const { value.store_first(array + begin, count); }
  Halves load_bits(const std::uint16_t* array) const {
    std::uint16_t padded[lane_count] = {};
    for (std::size_t i = 0; i < count; ++i) padded[i] = array[begin + i];
    return Halves::load(padded);
  }
  void store_bits(Halves value, std::uint16_t* array) const {
    std::uint16_t padded[lane_count];
    value.store(padded);
    for (std::size_t i = 0; i < count; ++i) array[begin + i] = padded[i];
  }
  template <Rounded T>
  Floats load(const T* array) const {
    return widened(T{}, load_bits(&array->bits));
  }
  template <Rounded T>
  void store(Floats value, T* array) const {
    store_bits(rounded(T{}, value), &array->bits);
  }
  template <Code T>
  Floats load(const T* array) const {
    T padded[lane_count] = {};
    for (std::size_t i = 0; i < count; ++i) padded[i] = array[begin + i];
    return widened(T{}, Bytes::load(padded));
  }
  template <Code T>
  void store(Floats value, T* array) const {
    T padded[lane_count];
    cut_off(value).store(padded);
    for (std::size_t i = 0; i < count; ++i) array[begin + i] = padded[i];
  }
};

template <typename Floats, template <typename> class Each = Whole, typename Body>
void for_lanes(std::size_t begin, std::size_t end, const Body& body) {
  for (; end - begin >= lane_count; begin += lane_count) body(Each<Floats>{begin});
  if (begin < end) body(Rest<Floats>{begin, end - begin});
}

}  // namespace aliquot::cpu
