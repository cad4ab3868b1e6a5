/// \file
/// A small model in sizes that break careless arithmetic, and reproducible numbers to put into it.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "aliquot/kernels.h"
#include "aliquot/parameters.h"
#include "aliquot/reducer.h"

namespace aliquot::test {

/// Parameters of 0, 1, a prime number of elements, and fewer than there are ranks; a unit that does not train; a unit
/// without elements; one that encloses the others.
inline std::vector<UnitSpec> toy_units(DType dtype = DType::fp32) {
  std::vector<UnitSpec> units = {
      {.name = "root", .params = {{"scale", 1}, {"bias", 5}}, .encloses_units = true},
      {.name = "embed", .params = {{"embed.weight", 1021}}},
      {.name = "table", .params = {{"table.weight", 1361}}, .trainable = false},
      {.name = "block", .params = {{"block.up", 307}, {"block.gate", 1}, {"block.none", 0}, {"block.down", 17}}},
      {.name = "void", .params = {{"void.weight", 0}}},
      {.name = "head", .params = {{"head.weight", 211}, {"head.bias", 13}}}};
  for (UnitSpec& unit : units) unit.dtype = dtype;
  return units;
}

/// Magnitudes lie far apart, so that another order of addition gives other bits.
inline std::vector<float> numbers(std::initializer_list<std::size_t> seed, std::size_t count) {
  std::seed_seq sequence(seed.begin(), seed.end());
  std::mt19937 random(sequence);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> exponent(-8, 4);
  std::vector<float> made(count);
  for (float& number : made) number = std::ldexp(normal(random), exponent(random));
  return made;
}

inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

/// The gradients of a unit and the arrays that they point to.
class UnitGradients {
 public:
  explicit UnitGradients(const UnitSpec& unit)
      : dtype_(unit.dtype), arrays_(unit.params.size()), rounded_(unit.params.size()),
        pointers_(unit.params.size(), nullptr) {}

  /// Rounds `values` to the unit's dtype.
  void set(std::size_t param, std::vector<float> values) {
    std::vector<std::byte>& bytes = rounded_[param];
    bytes.resize(values.size() * size_of(dtype_));
    bytes.reserve(1);  // an array of no elements has an address too
    cast(values.data(), DType::fp32, bytes.data(), dtype_, values.size());
    arrays_[param] = std::move(values);
    pointers_[param] = bytes.data();
  }
  bool has(std::size_t param) const { return pointers_[param] != nullptr; }
  const std::vector<float>& array(std::size_t param) const { return arrays_[param]; }
  const Gradients& pointers() const { return pointers_; }

 private:
  DType dtype_;
  std::vector<std::vector<float>> arrays_;
  std::vector<std::vector<std::byte>> rounded_;
  Gradients pointers_;
};

}  // namespace aliquot::test
