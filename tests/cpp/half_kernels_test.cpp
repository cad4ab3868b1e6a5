// Kernels on 16-bit elements, on every instruction set: conversions against the definition of the formats, updates
// against the fp32 update of the masters.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "aliquot/kernels.h"
#include "aliquot/split_master.h"
#include "formats.h"
#include "isas.h"
#include "rules.h"

namespace aliquot {
namespace {

using test::all_rules;
using test::encoded;
using test::name_of_rule;
using test::numbers;
using test::representable;
using test::step_whole;

using HalfKernels = Kernels;
using Bytes = std::vector<std::byte>;

constexpr std::array halves = {DType::bf16, DType::fp16};

Bytes cast_from(const std::vector<float>& values, DType dtype) {
  Bytes bytes(values.size() * size_of(dtype));
  cast(values.data(), DType::fp32, bytes.data(), dtype, values.size());
  return bytes;
}

std::vector<float> cast_back(const Bytes& bytes, DType dtype) {
  std::vector<float> values(bytes.size() / size_of(dtype));
  cast(bytes.data(), dtype, values.data(), DType::fp32, values.size());
  return values;
}

/// Every exponent and sign, and around each the lower bits that decide how it is rounded.
std::vector<float> decisive_numbers() {
  std::vector<float> values;
  for (std::uint32_t upper = 0; upper < 0x10000; ++upper) {
    for (const std::uint32_t lower : {0U, 1U, 0xFFFU, 0x1000U, 0x1001U, 0x3000U, 0x7FFFU, 0x8000U, 0x8001U, 0xFFFFU}) {
      values.push_back(std::bit_cast<float>(upper << 16 | lower));
    }
  }
  return values;
}

TEST_F(HalfKernels, RoundToTheNearestTiesToEven) {
  const std::vector<float> values = decisive_numbers();
  for (const cpu::Isa isa : supported_isas()) {
    cpu::use(isa);
    for (const DType dtype : halves) {
      const std::vector<float> rounded = cast_back(cast_from(values, dtype), dtype);
      for (std::size_t i = 0; i < values.size(); ++i) {
        if (std::isnan(values[i])) {
          ASSERT_TRUE(std::isnan(rounded[i]));
        } else {
          const float expected = representable(values[i], dtype);
          ASSERT_EQ(std::bit_cast<std::uint32_t>(rounded[i]), std::bit_cast<std::uint32_t>(expected)) << values[i];
        }
      }
    }
  }
}

TEST_F(HalfKernels, WidenEveryPatternExactlyAndAlike) {
  std::vector<std::uint16_t> patterns(0x10000);
  for (std::size_t i = 0; i < patterns.size(); ++i) patterns[i] = static_cast<std::uint16_t>(i);
  const auto begin = reinterpret_cast<const std::byte*>(patterns.data());
  const Bytes bytes(begin, begin + 2 * patterns.size());
  for (const DType dtype : halves) {
    cpu::use(cpu::Isa::plain);
    const std::vector<float> oracle = cast_back(bytes, dtype);
    for (const cpu::Isa isa : supported_isas()) {
      cpu::use(isa);
      const std::vector<float> wide = cast_back(bytes, dtype);
      EXPECT_TRUE(encoded(wide, DType::fp32) == encoded(oracle, DType::fp32));
      const Bytes back = encoded(wide, dtype);
      for (std::size_t i = 0; i < wide.size(); ++i) {
        const bool same = back[2 * i] == bytes[2 * i] && back[2 * i + 1] == bytes[2 * i + 1];
        ASSERT_TRUE(same || std::isnan(wide[i])) << i;
      }
    }
  }
}

TEST_F(HalfKernels, CastAnyCountAndTouchNothingBehindIt) {
  const std::vector<float> values = numbers(300'007, 1);
  for (const cpu::Isa isa : supported_isas()) {
    cpu::use(isa);
    for (const std::size_t count : {0UL, 1UL, 15UL, 16UL, 17UL, 1000UL, 299'999UL}) {
      for (const DType dtype : halves) {
        Bytes expected(2 * values.size(), std::byte{0x5A}), bytes = expected;
        const Bytes whole = encoded(values, dtype);
        std::copy_n(whole.begin(), 2 * count, expected.begin());
        cast(values.data(), DType::fp32, bytes.data(), dtype, count);
        EXPECT_TRUE(bytes == expected) << count;
      }
    }
  }
}

struct Form {
  DType dtype;
  Master master;
};

/// The bytes of the parameters and of the masters' array that `form` keeps of `masters`.
std::pair<Bytes, Bytes> stored(const std::vector<float>& masters, Form form) {
  if (form.master == Master::fp32) return {encoded(masters, form.dtype), encoded(masters, DType::fp32)};
  std::pair<Bytes, Bytes> kept{Bytes(2 * masters.size()), Bytes(2 * masters.size())};
  for (std::size_t i = 0; i < masters.size(); ++i) {
    const SplitMaster split = split_master(masters[i]);
    std::memcpy(&kept.first[2 * i], &split.high, 2);
    std::memcpy(&kept.second[2 * i], &split.low, 2);
  }
  return kept;
}

class HalfUpdates : public Kernels, public testing::WithParamInterface<Rule> {};

TEST_P(HalfUpdates, AreOfMastersAsInFp32AndRoundTheParameters) {
  for (const cpu::Isa isa : supported_isas()) {
    cpu::use(isa);
    for (const Form form :
         {Form{DType::bf16, Master::fp32}, Form{DType::fp16, Master::fp32}, Form{DType::bf16, Master::low16}}) {
      for (const std::size_t count : {0UL, 1UL, 17UL, 300'007UL}) {
        std::vector<float> masters = numbers(count, 1), m = numbers(count, 2), v = numbers(count, 3);
        for (std::vector<float>* state : {&m, &v}) {
          for (float& value : *state) value *= value;  // some rules take the root of it
        }
        std::vector<float> half_m = m, half_v = v;
        auto [param, master] = stored(masters, form);
        for (int step = 1; step <= 3; ++step) {
          const std::vector<float> grad = numbers(count, 4 + static_cast<std::uint32_t>(step), DType::bf16);
          const Weights halves{param.data(), form.dtype, master.data(), form.master};
          const NormSquares whole =
              step_whole(GetParam(), {step, 0.3F}, Weights{.param = masters.data()}, grad, {m, v});
          EXPECT_EQ(step_whole(GetParam(), {step, 0.3F}, halves, grad, {half_m, half_v}), whole);
        }
        const auto [expected_param, expected_master] = stored(masters, form);
        EXPECT_TRUE(param == expected_param) << count;
        EXPECT_TRUE(master == expected_master) << count;
        EXPECT_TRUE(encoded(half_m, DType::fp32) == encoded(m, DType::fp32));
        EXPECT_TRUE(encoded(half_v, DType::fp32) == encoded(v, DType::fp32));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Rules, HalfUpdates, testing::ValuesIn(all_rules()), name_of_rule);

}  // namespace
}  // namespace aliquot
