/// \file
/// Arrays for the tests of kernels: misaligned at will, reproducible, and between guards.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace aliquot {

/// `count` numbers in (-2, 2) that begin `offset` floats past a 64-byte boundary.
class GuardedArray {
 public:
  GuardedArray(std::size_t count, std::size_t offset, std::uint32_t seed)
      : storage_(count + 3 * guard, untouched), count_(count) {
    const std::size_t past_boundary = reinterpret_cast<std::uintptr_t>(storage_.data()) / sizeof(float) % guard;
    begin_ = 2 * guard - past_boundary + offset % guard;
    for (float& value : span()) {
      seed = seed * 1664525u + 1013904223u;
      value = static_cast<float>(static_cast<std::int32_t>(seed)) * 0x1p-30f;
    }
  }

  std::span<float> span() { return std::span(storage_).subspan(begin_, count_); }
  std::span<const float> span() const { return std::span(storage_).subspan(begin_, count_); }
  float* data() { return span().data(); }

  bool same_bits(const GuardedArray& other) const {
    return count_ == other.count_ &&
           (count_ == 0 || std::memcmp(span().data(), other.span().data(), span().size_bytes()) == 0);
  }

  bool guards_untouched() const {
    const auto is_untouched = [](float value) { return value == untouched; };
    const auto begin = storage_.begin() + static_cast<std::ptrdiff_t>(begin_);
    return std::all_of(storage_.begin(), begin, is_untouched) &&
           std::all_of(begin + static_cast<std::ptrdiff_t>(count_), storage_.end(), is_untouched);
  }

 private:
  static constexpr std::size_t guard = 16;
  static constexpr float untouched = 42;

  std::vector<float> storage_;
  std::size_t count_;
  std::size_t begin_;
};

}  // namespace aliquot
