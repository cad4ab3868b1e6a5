// The codes of 8-bit states, and the update that decodes, steps and encodes them.
#include "aliquot/quantization.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "aliquot/error.h"
#include "aliquot/kernels.h"
#include "formats.h"
#include "isas.h"

namespace aliquot {
namespace {

using test::infinity;
using test::numbers;

struct Coded {
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;

  friend bool operator==(const Coded& a, const Coded& b) {
    return a.codes == b.codes && a.scales.size() == b.scales.size() &&
           std::memcmp(a.scales.data(), b.scales.data(), a.scales.size() * sizeof(float)) == 0;
  }
};

Coded quantized(Role role, const std::vector<float>& values) {
  Coded made{std::vector<std::uint8_t>(values.size()), std::vector<float>(block_count(values.size()))};
  quantize(role, values, made.codes.data(), made.scales.data());
  return made;
}

std::vector<float> dequantized(Role role, const Coded& coded) {
  std::vector<float> values(coded.codes.size());
  dequantize(role, coded.codes.data(), coded.scales.data(), values);
  return values;
}

std::vector<std::uint8_t> all_codes() {
  std::vector<std::uint8_t> codes(256);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i);
  return codes;
}

class Codes : public testing::TestWithParam<Role> {
 protected:
  /// The values that a code may stand for, as fractions of the scale, by arithmetic of the paper's own: of each decade
  /// below 1, the middles of 2^i equal parts, or of twice as many without a sign.
  static std::vector<double> values() {
    std::vector<double> made{0, 1};
    for (int decade = 0; decade < 7; ++decade) {
      const int parts = (has_sign(GetParam()) ? 1 : 2) << decade;
      for (int part = 0; part < parts; ++part) {
        made.push_back(std::pow(10.0, decade - 6) * (0.1 + 0.9 * (part + 0.5) / parts));
      }
    }
    std::ranges::sort(made);
    return made;
  }
};

TEST_P(Codes, StandForThePapersValues) {
  const float scale = has_sign(GetParam()) ? -3.0F : 3.0F;
  std::vector<float> decoded = dequantized(GetParam(), {all_codes(), {scale}});
  std::ranges::sort(decoded);
  std::vector<double> expected = values();
  if (has_sign(GetParam())) {
    const std::vector<double> positive = expected;
    for (const double value : positive) {
      if (value > 0 && value < 1) expected.push_back(-value);
    }
    std::ranges::sort(expected);
  }
  ASSERT_EQ(decoded.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(decoded[i], 3 * expected[i], 3e-6 * std::abs(expected[i])) << i;
  }
}

TEST_P(Codes, AreTheSameOnceDecodedAndEncodedAtAnyScale) {
  for (double exponent = -100; exponent <= 126; exponent += 0.37) {
    for (const float sign : {1.0F, -1.0F}) {
      if (sign < 0 && !has_sign(GetParam())) continue;
      const Coded coded{all_codes(), {sign * static_cast<float>(std::exp2(exponent))}};
      const std::vector<float> values = dequantized(GetParam(), coded);
      EXPECT_EQ(quantized(GetParam(), values), coded) << exponent;
    }
  }
}

TEST_P(Codes, AreNearTheNumbers) {
  std::vector<float> given = numbers(100'000, 1);
  if (!has_sign(GetParam())) {
    for (float& value : given) value *= value;
  }
  const Coded coded = quantized(GetParam(), given);
  const std::vector<float> back = dequantized(GetParam(), coded);
  const std::vector<double> values = this->values();
  const double parts = has_sign(GetParam()) ? 1 : 2;
  for (std::size_t i = 0; i < given.size(); ++i) {
    const double scale = std::abs(coded.scales[i / quantization_block]), value = std::abs(given[i]) / scale;
    const double decade = std::clamp(std::floor(std::log10(value) + 7), 0.0, 6.0);
    const double half_a_part = std::pow(10.0, decade - 6) * 0.45 / (parts * std::exp2(decade));
    ASSERT_LE(std::abs(back[i] - given[i]), scale * half_a_part * (1 + 1e-4) + scale * 1e-7) << i << " " << value;
  }
}

TEST_P(Codes, KeepTheLargestOfABlock) {
  std::vector<float> given = numbers(10 * quantization_block, 2);
  for (float& value : given) value = has_sign(GetParam()) ? value : std::abs(value);
  const std::vector<float> back = dequantized(GetParam(), quantized(GetParam(), given));
  for (std::size_t begin = 0; begin < given.size(); begin += quantization_block) {
    const auto smaller = [](float a, float b) { return std::abs(a) < std::abs(b); };
    const auto first = given.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto largest = std::max_element(first, first + quantization_block, smaller);
    EXPECT_EQ(back[static_cast<std::size_t>(largest - given.begin())], *largest);
  }
}

TEST_P(Codes, AreFiniteForWhateverIsGiven) {
  constexpr float most = std::numeric_limits<float>::max(), least = std::numeric_limits<float>::denorm_min();
  const float sign = has_sign(GetParam()) ? -1.0F : 1.0F;
  for (const float largest : {0.0F, -0.0F, least, 1e-31F, 1.0F, most, infinity}) {
    const std::vector<float> given{sign * largest, 0, least, 1e-35F, std::min(largest, 1e-3F)};
    const Coded coded = quantized(GetParam(), given);
    const std::vector<float> back = dequantized(GetParam(), coded);
    for (const float value : back) EXPECT_TRUE(std::isfinite(value)) << largest;
    EXPECT_EQ(back[1], 0);
    EXPECT_EQ(quantized(GetParam(), back), coded) << largest;
  }
}

TEST(UnsignedCodesOfSmallNumbers, AreNotZero) {
  std::vector<float> given{1, 1e-3F, 1e-7F, 1e-8F, 1e-20F, 0};
  const Coded coded = quantized(Role::exp_avg_sq, given);
  for (std::size_t i = 0; i + 1 < given.size(); ++i) EXPECT_GT(coded.codes[i], 0);
  EXPECT_EQ(coded.codes.back(), 0);
}

INSTANTIATE_TEST_SUITE_P(States, Codes, testing::Values(Role::exp_avg, Role::exp_avg_sq),
                         [](const auto& info) { return std::string(name_of(info.param)); });

/// One part of a parameter, whose masters are in one of the forms, and its states.
struct Part {
  DType dtype;
  Master form;
  std::vector<std::byte> param, master;
  Coded exp_avg, exp_avg_sq;

  Weights weights() { return {param.data(), dtype, master.empty() ? nullptr : master.data(), form}; }
};

using Form = std::tuple<DType, Master>;

class QuantizedUpdate : public Kernels, public testing::WithParamInterface<Form> {
 protected:
  static Part part_of(std::size_t count) {
    const auto [dtype, form] = GetParam();
    const std::vector<float> values = numbers(count, 5, dtype);
    Part part{dtype, form, test::encoded(values, dtype), {}, {}, {}};
    if (form == Master::fp32) part.master = test::encoded(values, DType::fp32);
    if (form == Master::low16) part.master.resize(2 * count);
    std::vector<float> squares = numbers(count, 6);
    for (float& value : squares) value *= value;
    part.exp_avg = quantized(Role::exp_avg, numbers(count, 7));
    part.exp_avg_sq = quantized(Role::exp_avg_sq, squares);
    return part;
  }

  static void step(Part& part, const std::vector<float>& grad) {
    update(rule, at, part.weights(), grad,
           QuantizedStates{QuantizedState{part.exp_avg.codes, part.exp_avg.scales},
                           QuantizedState{part.exp_avg_sq.codes, part.exp_avg_sq.scales}});
  }

  /// What it is made of.
  static void step_in_three(Part& part, const std::vector<float>& grad) {
    std::vector<float> exp_avg = dequantized(Role::exp_avg, part.exp_avg);
    std::vector<float> exp_avg_sq = dequantized(Role::exp_avg_sq, part.exp_avg_sq);
    const AdamW& plain = rule;
    update(plain, at, part.weights(), grad, States{exp_avg, exp_avg_sq});
    part.exp_avg = quantized(Role::exp_avg, exp_avg);
    part.exp_avg_sq = quantized(Role::exp_avg_sq, exp_avg_sq);
  }

  static constexpr AdamW8bit rule{{.lr = 1e-2, .beta2 = 0.95, .weight_decay = 0.1}};
  static constexpr ParamStep at{.number = 3, .grad_scale = 0.7F};
};

TEST_P(QuantizedUpdate, DecodesStepsAndEncodesOnEveryInstructionSetAndAnyNumberOfThreads) {
  for (const std::size_t count : {0, 1, 15, 16, 17, 255, 256, 257, 1000, 4096, 300'007}) {
    cpu::use(cpu::Isa::plain);
    Part expected = part_of(count);
    const std::vector<float> grad = numbers(count, 8);
    step_in_three(expected, grad);
    for (const cpu::Isa isa : supported_isas()) {
      for (const int threads : {1, 3}) {
        cpu::use(isa);
        set_thread_count(threads);
        Part part = part_of(count);
        step(part, grad);
        const std::string where = std::to_string(count) + " on " + std::to_string(static_cast<int>(isa));
        EXPECT_TRUE(part.param == expected.param) << where;
        EXPECT_TRUE(part.master == expected.master) << where;
        EXPECT_TRUE(part.exp_avg == expected.exp_avg) << where;
        EXPECT_TRUE(part.exp_avg_sq == expected.exp_avg_sq) << where;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, QuantizedUpdate,
                         testing::Values(Form{DType::fp32, Master::none}, Form{DType::bf16, Master::fp32},
                                         Form{DType::fp16, Master::fp32}, Form{DType::bf16, Master::low16}));

TEST(QuantizedUpdateArguments, AreOfOneSizeAndKind) {
  std::vector<float> numbers(300), scales(2), three(3);
  std::vector<std::uint8_t> codes(300);
  const Weights weights{.param = numbers.data()};
  const QuantizedState right{codes, scales}, short_of_codes{std::span(codes).first(299), scales};
  const QuantizedState with_too_many_scales{codes, three};
  update(AdamW8bit(), {}, weights, numbers, QuantizedStates{right, right});
  for (const QuantizedState& wrong : {short_of_codes, with_too_many_scales, QuantizedState{}}) {
    EXPECT_THROW(update(AdamW8bit(), {}, weights, numbers, QuantizedStates{right, wrong}), InvalidArgument);
  }
  EXPECT_THROW(update(AdamW(), {}, weights, numbers, QuantizedStates{right, right}), InvalidArgument);
  EXPECT_THROW(update(AdamW8bit(), {}, weights, numbers, States{numbers, numbers}), InvalidArgument);
}

}  // namespace
}  // namespace aliquot
