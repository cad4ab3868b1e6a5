// Every kernel against the plain one, bit by bit; the plain ones against their definitions.
#include "aliquot/kernels.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "aliquot/error.h"
#include "arrays.h"
#include "isas.h"
#include "rules.h"

namespace aliquot {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float quiet_nan = std::numeric_limits<float>::quiet_NaN();

using Arrays = std::array<GuardedArray, 4>;
using Kernel = std::function<GradStatistics(Arrays&)>;

struct NamedKernel {
  std::string name;
  Kernel run;
};

template <Accumulate accumulate>
GradStatistics reduce_three(Arrays& a) {
  return reduce(std::array<const float*, 3>{a[0].data(), a[1].data(), a[2].data()}, 0.3f, a[3].span(), accumulate);
}

GradStatistics copy_first(Arrays& a) {
  copy(a[0].span(), a[1].data());
  return {};
}

GradStatistics scale_first(Arrays& a) {
  scale(a[0].span(), 0.7f);
  return {};
}

GradStatistics statistics_of_first(Arrays& a) { return grad_statistics(a[0].span()); }

/// States of rules that take a root of them are not negative.
Kernel square_and_update(const Rule& rule) {
  return [rule](Arrays& a) {
    for (const std::size_t i : {2, 3}) {
      for (float& value : a[i].span()) value *= value;
    }
    const NormSquares squares = test::step_whole(rule, {.number = 7, .grad_scale = 0.9f}, Weights{.param = a[0].data()},
                                                 a[1].span(), {a[2].span(), a[3].span()});
    return GradStatistics{squares.param + squares.direction, 0};
  };
}

std::vector<NamedKernel> all_kernels() {
  std::vector<NamedKernel> kernels{{"copy", copy_first},
                                   {"scale", scale_first},
                                   {"statistics", statistics_of_first},
                                   {"reduce_assign", reduce_three<Accumulate::no>},
                                   {"reduce_add", reduce_three<Accumulate::yes>}};
  for (const Rule& rule : test::all_rules()) {
    kernels.push_back({test::name_of_rule({rule, kernels.size()}), square_and_update(rule)});
  }
  return kernels;
}

Arrays arrays_of(std::size_t count, std::size_t offset) {
  return {GuardedArray(count, offset, 1), GuardedArray(count, 2 * offset, 2), GuardedArray(count, 3 * offset, 3),
          GuardedArray(count, offset, 4)};
}

class KernelBits : public Kernels, public testing::WithParamInterface<NamedKernel> {
 protected:
  /// The kernel's results equal those of the plain one on aligned arrays and one thread.
  void expect_oracle(std::size_t count, std::initializer_list<std::size_t> offsets) {
    cpu::use(cpu::Isa::plain);
    set_thread_count(1);
    Arrays expected = arrays_of(count, 0);
    const GradStatistics expected_statistics = GetParam().run(expected);
    for (cpu::Isa isa : supported_isas()) {
      for (int threads : {1, 2, 3}) {
        cpu::use(isa);
        set_thread_count(threads);
        for (std::size_t offset : offsets) {
          SCOPED_TRACE(testing::Message() << "isa " << static_cast<int>(isa) << ", threads " << threads << ", count "
                                          << count << ", offset " << offset);
          Arrays arrays = arrays_of(count, offset);
          EXPECT_EQ(GetParam().run(arrays), expected_statistics);
          for (std::size_t i = 0; i < arrays.size(); ++i) {
            EXPECT_TRUE(arrays[i].same_bits(expected[i])) << "array " << i;
            EXPECT_TRUE(arrays[i].guards_untouched()) << "array " << i;
          }
        }
      }
    }
  }
};

TEST_P(KernelBits, EqualTheOracleForAnySizeAlignmentAndThreads) {
  for (std::size_t count : {0, 1, 2, 15, 16, 17, 31, 33, 1000, 65537}) expect_oracle(count, {0, 1, 5});
}

TEST_P(KernelBits, EqualTheOracleInPiecesOfSeveralThreads) { expect_oracle(300'007, {0, 3}); }

TEST_P(KernelBits, EqualTheOracleWhereStoresBypassTheCache) { expect_oracle((1u << 20) + 13, {0, 3}); }

INSTANTIATE_TEST_SUITE_P(All, KernelBits, testing::ValuesIn(all_kernels()),
                         [](const auto& instance) { return instance.param.name; });

TEST_F(Kernels, CopyCopies) {
  for (std::size_t count : {std::size_t{33}, std::size_t{1} << 20}) {
    const GuardedArray source(count, 1, 5);
    GuardedArray target(count, 3, 6);
    copy(source.span(), target.data());
    EXPECT_TRUE(target.same_bits(source));
  }
}

TEST_F(Kernels, StatisticsCountNonFiniteElementsAndLeaveThemOut) {
  for (cpu::Isa isa : supported_isas()) {
    cpu::use(isa);
    GuardedArray data(50'003, 1, 7);
    const double all = grad_statistics(data.span()).square_sum;
    double left_out = 0;
    const std::array bad = {quiet_nan, infinity, -infinity, -quiet_nan};
    const std::array places = {0u, 7u, 9u, 20'000u, 49'999u, 50'002u};
    for (std::size_t i = 0; i < places.size(); ++i) {
      float& place = data.span()[places[i]];
      left_out += double{place} * place;
      place = bad[i % bad.size()];
    }
    const GradStatistics statistics = grad_statistics(data.span());
    EXPECT_EQ(statistics.non_finite, places.size());
    EXPECT_NEAR(statistics.square_sum, all - left_out, 1e-10 * all);
  }
}

TEST_F(Kernels, StatisticsOfFiniteExtremesAreFinite) {
  std::vector<float> data(100, std::numeric_limits<float>::max());
  data.resize(200, std::numeric_limits<float>::denorm_min());
  const double largest = std::numeric_limits<float>::max();
  const GradStatistics statistics = grad_statistics(data);
  EXPECT_EQ(statistics.non_finite, 0u);
  EXPECT_NEAR(statistics.square_sum / (largest * largest), 100, 1e-10);
}

TEST_F(Kernels, ReduceIsTheSumInOrderTimesTheFactor) {
  constexpr std::size_t count = 1003;
  const Arrays parts = arrays_of(count, 1);
  for (std::size_t part_count = 1; part_count <= parts.size(); ++part_count) {
    std::vector<const float*> pointers;
    for (std::size_t part = 0; part < part_count; ++part) pointers.push_back(parts[part].span().data());
    std::vector<float> assigned(count, 7.0f), added(count, 7.0f);
    const GradStatistics assigned_statistics = reduce(pointers, 0.3f, assigned, Accumulate::no);
    const GradStatistics added_statistics = reduce(pointers, 0.3f, added, Accumulate::yes);
    for (std::size_t i = 0; i < count; ++i) {
      volatile float sum = pointers[0][i];  // rounded to fp32 after each operation
      for (std::size_t part = 1; part < part_count; ++part) sum = sum + pointers[part][i];
      sum = sum * 0.3f;
      ASSERT_EQ(assigned[i], sum);
      ASSERT_EQ(added[i], 7.0f + sum);
    }
    EXPECT_EQ(assigned_statistics, grad_statistics(assigned));
    EXPECT_EQ(added_statistics, grad_statistics(added));
  }
}

TEST_F(Kernels, ReduceReportsNonFiniteResults) {
  std::vector<float> first(70'000, 1.0f), second(70'000, 2.0f), result(70'000);
  first[3] = infinity;
  second[3] = -infinity;
  second[69'999] = quiet_nan;
  first[40'000] = second[40'000] = std::numeric_limits<float>::max();  // finite, but the sum is not
  const std::array<const float*, 2> parts{first.data(), second.data()};
  const GradStatistics statistics = reduce(parts, 0.5f, result, Accumulate::no);
  EXPECT_EQ(statistics.non_finite, 3u);
  EXPECT_EQ(statistics, grad_statistics(result));
  EXPECT_EQ(statistics.square_sum, 69'997 * 2.25);
}

TEST_F(Kernels, ReduceNeedsAPart) {
  std::vector<float> result(3);
  EXPECT_THROW(reduce({}, 1.0f, result, Accumulate::no), InvalidArgument);
}

/// |value - reference| <= units * (half the distance of fp32 numbers near `magnitude`), roughly.
testing::AssertionResult near(float value, double reference, double magnitude, double units) {
  const double error = std::abs(value - reference);
  if (error <= units * 0x1p-24 * std::abs(magnitude) + 1e-45) return testing::AssertionSuccess();
  return testing::AssertionFailure() << value << " is not near " << reference << ", error " << error;
}

TEST_F(Kernels, AdamwIsTheUpdateOfItsDefinition) {
  constexpr std::size_t count = 1003;
  for (cpu::Isa isa : supported_isas()) {
    cpu::use(isa);
    for (std::int64_t t : {1, 2, 1000, 100'000}) {
      const AdamW rule{.lr = 3e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};
      Arrays arrays = arrays_of(count, 0);
      for (float& value : arrays[3].span()) value *= value;
      const Arrays before = arrays;
      update(rule, {t, 0.25f}, arrays[0].span(), arrays[1].span(), {arrays[2].span(), arrays[3].span()});
      for (std::size_t i = 0; i < count; ++i) {
        const double p = before[0].span()[i], g = before[1].span()[i] * 0.25, m0 = before[2].span()[i];
        const double m = m0 + (g - m0) * (1 - rule.beta1);
        const double v = before[3].span()[i] * rule.beta2 + (1 - rule.beta2) * g * g;
        const double root = std::sqrt(v) / std::sqrt(1 - std::pow(rule.beta2, t));
        const double change = rule.lr / (1 - std::pow(rule.beta1, t)) * m / (root + rule.eps);
        const double moved = std::abs(m0) + std::abs(g);
        ASSERT_TRUE(near(arrays[2].span()[i], m, moved, 4));
        ASSERT_TRUE(near(arrays[3].span()[i], v, v, 6));
        const double relative_to_m = moved / std::max(std::abs(m), 1e-30);
        ASSERT_TRUE(near(arrays[0].span()[i], p * (1 - rule.lr * rule.weight_decay) - change,
                         std::abs(p) + std::abs(change) * (1 + relative_to_m), 8));
      }
    }
  }
}

TEST_F(Kernels, AdamwLeavesParametersWithZeroGradientAndMomentsToTheDecayAlone) {
  std::vector<float> param(20, 2.0f), grad(20), exp_avg(20), exp_avg_sq(20);
  update(AdamW{.lr = 0.5, .weight_decay = 0.5}, {}, param, grad, {exp_avg, exp_avg_sq});
  EXPECT_EQ(param, std::vector<float>(20, 1.5f));
  EXPECT_EQ(exp_avg, std::vector<float>(20));
  EXPECT_EQ(exp_avg_sq, std::vector<float>(20));
}

TEST_F(Kernels, UpdatesRefuseWhatCannotBeRight) {
  std::vector<float> four(4), three(3);
  EXPECT_THROW(update(AdamW(), {}, four, three, {four, four}), InvalidArgument);
  EXPECT_THROW(update(AdamW(), {}, four, four, {three, four}), InvalidArgument);
  EXPECT_THROW(update(AdamW(), {}, four, four, {four}), InvalidArgument);
  EXPECT_THROW(update(AdamW(), {.number = 0}, four, four, {four, four}), InvalidArgument);
  EXPECT_THROW(update(Lamb(), {}, four, four, {four, four}), InvalidArgument);
  EXPECT_THROW(take(AdamW(), {}, Weights{.param = four.data()}, four, {four, four}), InvalidArgument);
  EXPECT_THROW(move(Lamb(), {}, 1, Weights{.param = four.data()}, {four, three}), InvalidArgument);
  update(Sgd(), {}, four, four, {});
  for (const Weights weights : {Weights{.dtype = DType::bf16}, Weights{.form = Master::fp32},
                                Weights{.dtype = DType::fp16, .form = Master::low16}}) {
    EXPECT_THROW(update(AdamW(), {}, weights, four, {four, four}), InvalidArgument);
  }
}

}  // namespace
}  // namespace aliquot
