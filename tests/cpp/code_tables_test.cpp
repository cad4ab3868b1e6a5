// The tables of the CUDA kernel against the arithmetic of quantization.h, bit by bit.
#include "cuda/code_tables.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

namespace aliquot {
namespace {

template <typename C>
class CodeTables : public testing::Test {
 protected:
  using Code = typename C::Code;
  using Cells = cuda::Cells<C>;

  /// What the kernel does with a float that is multiplied with to_cells.
  static int looked_up(float scaled) {
    const bool below_zero = std::signbit(scaled);
    const auto bits =
        std::bit_cast<std::uint32_t>(std::fabs(scaled) < 0x1p-126F ? std::copysign(0.0F, scaled) : scaled);
    const int index = Cells::index(std::bit_cast<float>(bits));
    const std::uint32_t sum =
        bits + (below_zero ? negative.of.at(index - Cells::first_negative) : positive.of.at(index));
    return static_cast<Code>(below_zero ? ~sum >> 24 : sum >> 24);
  }
  static void expect_same_code(float number, float inverse = 1) {
    const int expected = static_cast<Code>(C::encoded(number, inverse));
    ASSERT_EQ(looked_up(number * (inverse * cuda::to_cells)), expected) << number << " times " << inverse;
  }
  static void expect_same_codes(float number, float inverse = 1) {
    if (number < 0x1p-101F && !cuda::signed_codes<C>) return;  // the kernel looks no block with one of these up
    expect_same_code(number, inverse);
    if (cuda::signed_codes<C>) expect_same_code(-number, inverse);
  }
  /// Of numbers near this one, `floats` of each side.
  static void expect_same_codes_near(float number, std::uint32_t floats) {
    const auto bits = std::bit_cast<std::uint32_t>(number);
    for (std::uint32_t i = bits - std::min(bits, floats); i <= bits + floats; ++i) {
      expect_same_codes(std::bit_cast<float>(i));
    }
  }

  static constexpr Cells positive = cuda::cells<C>(false), negative = cuda::cells<C>(cuda::signed_codes<C>);
};

using Kinds = testing::Types<SignedCodes<float>, UnsignedCodes<float>>;
TYPED_TEST_SUITE(CodeTables, Kinds);

TYPED_TEST(CodeTables, DecodeEveryCodeAtAnyScale) {
  constexpr auto values = cuda::values<TypeParam>();
  for (const float scale : {1.0F, -1.0F, 0.0F, -0.0F, 3e-5F, -0.7F, 0x1p-100F, -0x1p126F}) {
    for (unsigned i = 0; i < 256; ++i) {
      const auto code = static_cast<float>(static_cast<typename TypeParam::Code>(i));
      EXPECT_EQ(std::bit_cast<std::uint32_t>(values[i] * scale),
                std::bit_cast<std::uint32_t>(TypeParam::decoded(code, scale)))
          << i << " at " << scale;
    }
  }
}

TYPED_TEST(CodeTables, EncodeWhereLinesAndCellsChange) {
  for (int decade = -8; decade <= 0; ++decade) {
    this->expect_same_codes_near(static_cast<float>(power_of_ten(decade)), 5000);
  }
  constexpr unsigned shift = cuda::Cells<TypeParam>::shift, of_one = std::bit_cast<std::uint32_t>(1.0F) >> shift;
  for (unsigned cell = 0; cell <= of_one; ++cell) {
    this->expect_same_codes_near(std::bit_cast<float>(cell << shift), 50);
  }
}

TYPED_TEST(CodeTables, EncodeWhereCodesChange) {
  for (int i = 0; i < 256; ++i) {
    const auto code = static_cast<float>(static_cast<typename TypeParam::Code>(i));
    const float value = std::abs(TypeParam::decoded(code, 1));
    this->expect_same_codes_near(value, 100);
    const float position = std::is_signed_v<typename TypeParam::Code> ? std::abs(code) : (code + 1) / 2;
    this->expect_same_codes_near(value_at(position, Decades()), 1000);
  }
}

TYPED_TEST(CodeTables, EncodeNumbersOfAnySize) {
  std::mt19937 random(1);
  for (int i = 0; i < 1'000'000; ++i) {
    const auto bits = static_cast<std::uint32_t>(random());
    this->expect_same_codes(std::bit_cast<float>(bits % 0x3F800000U));
    this->expect_same_codes(std::bit_cast<float>(bits % 0x0E000000U + 0x31800000U));  // from 2^-28 to 1
  }
}

TYPED_TEST(CodeTables, EncodeAtAnyScaleWhatIsNoLargerThanIt) {
  std::mt19937 random(2);
  for (int power = -100; power <= 24; ++power) {
    const float scale = std::ldexp(1.0F, power) * (power < 24 ? 1.3F : 1), inverse = Scale<float>::inverse(scale);
    this->expect_same_codes(scale, inverse);
    this->expect_same_codes(std::nextafter(scale, 0.0F), inverse);
    for (int i = 0; i < 1000; ++i) {
      const auto number =
          std::bit_cast<float>(static_cast<std::uint32_t>(random()) % std::bit_cast<std::uint32_t>(scale));
      this->expect_same_codes(number, inverse);
    }
  }
  this->expect_same_codes(0);
}

}  // namespace
}  // namespace aliquot
