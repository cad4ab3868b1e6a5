#include "aliquot/split_master.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace aliquot {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

float high_as_float(float master) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(split_master(master).high) << 16);
}

TEST(SplitMaster, IsExactForEveryKindOfBits) {
  for (std::uint64_t bits = 0; bits < std::uint64_t{1} << 32; bits += 65'521) {  // prime: meets all low halves
    const float master = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    ASSERT_EQ(std::bit_cast<std::uint32_t>(join_master(split_master(master))), bits);
  }
  for (const std::uint32_t bits : {0U, 0x7FFFU, 0x8000U, 0xFFFFU, 0x7F7FFFFFU, 0x7F800000U, 0x80000000U, 0xFFFFFFFFU}) {
    EXPECT_EQ(std::bit_cast<std::uint32_t>(join_master(split_master(std::bit_cast<float>(bits)))), bits);
  }
}

TEST(SplitMaster, GivesTheNearestParameterTiesAwayFromZero) {
  EXPECT_EQ(high_as_float(1.0F), 1.0F);
  EXPECT_EQ(high_as_float(1.0F + 0x1p-8F), 1.0F + 0x1p-7F);
  EXPECT_EQ(high_as_float(-1.0F - 0x1p-8F), -1.0F - 0x1p-7F);
  EXPECT_EQ(high_as_float(1.0F + 0x1.FFp-9F), 1.0F);
  EXPECT_EQ(high_as_float(infinity), infinity);
  EXPECT_EQ(split_master(-0.0F), (SplitMaster{0x8000, 0}));
}

TEST(SplitMaster, IsTheSameForArrays) {
  std::vector<float> masters;
  for (std::uint64_t bits = 0; bits < std::uint64_t{1} << 32; bits += 21'013) {
    masters.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  }
  std::vector<std::uint16_t> high(masters.size()), low(masters.size());
  split_masters(masters, high.data(), low.data());
  std::vector<float> joined(masters.size());
  join_masters(high.data(), low.data(), joined);
  EXPECT_EQ(std::memcmp(joined.data(), masters.data(), masters.size() * sizeof(float)), 0);
  for (std::size_t i = 0; i < masters.size(); i += 1'001) {
    ASSERT_EQ(split_master(masters[i]), (SplitMaster{high[i], low[i]}));
  }
}

TEST(SplitMaster, TakesAParameterWithoutMoreBitsAsItIs) { EXPECT_EQ(join_master({.high = 0x3F80, .low = 0}), 1.0F); }

}  // namespace
}  // namespace aliquot
