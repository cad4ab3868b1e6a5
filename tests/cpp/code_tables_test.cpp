// The tables of the CUDA kernel against the arithmetic of quantization.h, bit by bit.
#include "cuda/code_tables.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace aliquot {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

template <typename C>
class CodeTables : public testing::Test {
 protected:
  using Code = typename C::Code;

  /// What the conversions of a GPU do.
  static int cut_off(float number) {
    using Limits = std::numeric_limits<Code>;
    return static_cast<int>(std::clamp(number, float{Limits::min()}, float{Limits::max()}));
  }
  static void expect_same_code(float number, float inverse = 1) {
    const int expected = static_cast<Code>(C::encoded(number, inverse));
    ASSERT_EQ(cut_off(cuda::encoded(table, number, inverse)), expected) << number << " times " << inverse;
  }
  static void expect_same_codes(float number, float inverse = 1) {
    expect_same_code(number, inverse);
    if (std::is_signed_v<Code>) expect_same_code(-number, inverse);
  }
  /// Of numbers near this one, `floats` of each side.
  static void expect_same_codes_near(float number, std::uint32_t floats) {
    const auto bits = std::bit_cast<std::uint32_t>(number);
    for (std::uint32_t i = bits - std::min(bits, floats); i <= bits + floats; ++i) {
      expect_same_codes(std::bit_cast<float>(i));
    }
  }

  static constexpr cuda::CodeTable<C> table = cuda::code_table<C>();
};

using Kinds = testing::Types<SignedCodes<float>, UnsignedCodes<float>>;
TYPED_TEST_SUITE(CodeTables, Kinds);

TYPED_TEST(CodeTables, DecodeEveryCodeAtAnyScale) {
  for (const float scale : {1.0F, -1.0F, 0.0F, -0.0F, 3e-5F, -0.7F, 0x1p-100F, -0x1p126F}) {
    for (int i = 0; i < 256; ++i) {
      const auto code = static_cast<typename TypeParam::Code>(i);
      const float decoded = cuda::decoded(this->table, static_cast<std::uint8_t>(i), scale);
      EXPECT_EQ(std::bit_cast<std::uint32_t>(decoded),
                std::bit_cast<std::uint32_t>(TypeParam::decoded(static_cast<float>(code), scale)))
          << i << " at " << scale;
    }
  }
}

TYPED_TEST(CodeTables, EncodeWhereLinesAndTablesChange) {
  for (int decade = -8; decade <= 0; ++decade) {
    this->expect_same_codes_near(static_cast<float>(power_of_ten(decade)), 5000);
  }
  for (std::uint32_t exponent = 0; exponent < 255; ++exponent) {
    this->expect_same_codes_near(std::bit_cast<float>(exponent << 23), 1000);
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
    const float number = std::bit_cast<float>(bits % 0x7F800000U);
    this->expect_same_codes(number);
    this->expect_same_codes(std::bit_cast<float>(bits % 0x10000000U + 0x30000000U));  // from 2^-31 to 2
  }
}

TYPED_TEST(CodeTables, EncodeZeroDenormalAndLargeNumbers) {
  constexpr float denormal = std::numeric_limits<float>::denorm_min(), most = std::numeric_limits<float>::max();
  for (const float number : {0.0F, denormal, 1e-40F, 1.0F, 1.000001F, 1.5F, 2.0F, 3.0F, 1e20F, most, infinity}) {
    for (const float inverse : {0.0F, 0x1p-126F, 1e-3F, 1.0F, 1e30F}) {
      if (number == infinity && inverse == 0) continue;  // a block with infinity has a scale
      this->expect_same_codes(number, inverse);
      if (std::is_signed_v<typename TypeParam::Code>) this->expect_same_codes(number, -inverse);
    }
  }
  this->expect_same_codes(-0.0F);
}

}  // namespace
}  // namespace aliquot
