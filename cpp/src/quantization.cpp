#include "aliquot/quantization.h"

#include <algorithm>

#include "aliquot/parallel.h"

namespace aliquot {
namespace {

constexpr std::size_t grain_size = 64 * quantization_block;

template <typename Codes>
void quantize_block(std::span<const float> numbers, std::uint8_t* codes, float* scale) {
  float least = 0, greatest = 0;
  for (const float number : numbers) {
    least = lesser(number, least);
    greatest = greater(number, greatest);
  }
  *scale = Codes::scale_of(least, greatest);
  const float inverse = Scale<float>::inverse(*scale);
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const auto code = static_cast<typename Codes::Code>(Codes::encoded(numbers[i], inverse));
    codes[i] = static_cast<std::uint8_t>(code);
  }
}

template <typename Codes>
void dequantize_block(const std::uint8_t* codes, float scale, std::span<float> numbers) {
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const auto code = static_cast<typename Codes::Code>(codes[i]);
    numbers[i] = Codes::decoded(static_cast<float>(code), scale);
  }
}

/// body(number of the block, where it begins, how long it is)
template <typename Body>
void for_blocks(std::size_t count, const Body& body) {
  parallel_for(count, grain_size, [&](std::size_t begin, std::size_t end) {
    for (; begin < end; begin += quantization_block) {
      body(begin / quantization_block, begin, std::min(quantization_block, end - begin));
    }
  });
}

}  // namespace

void quantize(Role state, std::span<const float> numbers, std::uint8_t* codes, float* scales) {
  const auto quantize_one = has_sign(state) ? quantize_block<SignedCodes<float>> : quantize_block<UnsignedCodes<float>>;
  for_blocks(numbers.size(), [&](std::size_t block, std::size_t begin, std::size_t count) {
    quantize_one(numbers.subspan(begin, count), codes + begin, scales + block);
  });
}

void dequantize(Role state, const std::uint8_t* codes, const float* scales, std::span<float> numbers) {
  const auto dequantize_one =
      has_sign(state) ? dequantize_block<SignedCodes<float>> : dequantize_block<UnsignedCodes<float>>;
  for_blocks(numbers.size(), [&](std::size_t block, std::size_t begin, std::size_t count) {
    dequantize_one(codes + begin, scales[block], numbers.subspan(begin, count));
  });
}

}  // namespace aliquot
