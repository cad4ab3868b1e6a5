#include <array>
#include <bit>
#include <cmath>
#include <variant>

#include "aliquot/device_kernels.h"
#include "tests/cpp/rules.h"
#include "tests/cuda/device_test.h"

namespace aliquot::test {
namespace {

using cuda::DeviceStatistics;
using cuda::ParamScalars;
using cuda::ReportShape;
using cuda::StepState;

/// The reports of all ranks, in host memory.
class Reports {
 public:
  explicit Reports(ReportShape shape)
      : shape_(shape), bytes_(shape.bytes() * static_cast<std::size_t>(shape.world_size)) {
    for (std::size_t unit = 0; unit < shape.units; ++unit) {
      for (int rank = 0; rank < shape.world_size; ++rank) {
        const float size = numbers(1, static_cast<std::uint32_t>(unit * 31) + static_cast<std::uint32_t>(rank))[0];
        set(rank, unit, {1e3 * std::abs(size), 0, DeviceStatistics::none});
      }
    }
  }

  void set(int rank, std::size_t unit, const DeviceStatistics& said) {
    std::memcpy(report(rank) + unit * sizeof said, &said, sizeof said);
  }
  DeviceStatistics get(int rank, std::size_t unit) {
    DeviceStatistics said;
    std::memcpy(&said, report(rank) + unit * sizeof said, sizeof said);
    return said;
  }
  void set_present(int rank, std::size_t param) { report(rank)[shape_.present_offset() + param] = std::byte{1}; }

  /// In the order that is promised.
  double norm() {
    double sum = 0;
    for (std::size_t unit = 0; unit < shape_.units; ++unit) {
      for (int rank = 0; rank < shape_.world_size; ++rank) sum += get(rank, unit).square_sum;
    }
    return std::sqrt(sum);
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  std::byte* report(int rank) { return bytes_.data() + static_cast<std::size_t>(rank) * shape_.bytes(); }

  ReportShape shape_;
  std::vector<std::byte> bytes_;
};

const std::vector<AdamW> groups{{.lr = 3e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1},
                                {.lr = 1e-2, .beta1 = 0.8, .beta2 = 0.999, .eps = 1e-6, .weight_decay = 0}};

/// All that a rule's Scalars consist of.
template <typename Scalars>
std::array<float, sizeof(Scalars) / sizeof(float)> floats_of(const Scalars& scalars) {
  return std::bit_cast<std::array<float, sizeof(Scalars) / sizeof(float)>>(scalars);
}

/// pow is not the host's to the last bit of its 53, so what depends on the step is near what the host works out.
void expect_scalars(const ParamScalars<AdamW>& actual, const AdamW& group, std::int64_t step) {
  const AdamW::Scalars expected = group.scalars(step);
  EXPECT_EQ(actual.stepped, 1U);
  EXPECT_EQ(actual.of_rule.decay, expected.decay);
  EXPECT_EQ(actual.of_rule.adam.one_minus_beta1, expected.adam.one_minus_beta1);
  EXPECT_EQ(actual.of_rule.adam.beta2, expected.adam.beta2);
  EXPECT_EQ(actual.of_rule.adam.one_minus_beta2, expected.adam.one_minus_beta2);
  EXPECT_EQ(actual.of_rule.adam.eps, expected.adam.eps);
  EXPECT_FLOAT_EQ(actual.of_rule.adam.inverse_correction2, expected.adam.inverse_correction2);
  EXPECT_FLOAT_EQ(actual.of_rule.adam.minus_step_size, expected.adam.minus_step_size);
}

/// What the kernel keeps from step to step.
class Steps {
 public:
  Steps(ReportShape shape, const std::vector<int>& group_of_param, Stream stream)
      : shape_(shape), stream_(stream), groups_(groups, stream), group_of_param_(group_of_param, stream),
        steps_(std::vector<std::int64_t>(shape.params), stream), state_(one_of(StepState{}, stream)),
        loss_scale_(one_of(LossScale{}, stream)),
        scalars_(std::vector<ParamScalars<AdamW>>(shape.params, ParamScalars<AdamW>{.stepped = 7, .of_rule = {}}),
                 stream) {}

  void step(const Reports& reports, double max_norm) {
    const DeviceArray<std::byte> there(reports.bytes(), stream_);
    cuda::finish_report(AdamW(), shape_, there.data(), groups_.data(), group_of_param_.data(), steps_.data(), max_norm,
                        loss_scale_.data(), state_.data(), scalars_.data(), stream_);
    synchronize(stream_);
  }
  void set_loss_scale(const LossScale& scale) {
    copy_async(loss_scale_.data(), &scale, sizeof scale, stream_);
    synchronize(stream_);
  }
  void update_loss_scale(const ScaleRule& rule) {
    cuda::update_loss_scale(loss_scale_.data(), rule, stream_);
    synchronize(stream_);
  }
  LossScale loss_scale() const { return loss_scale_.values()[0]; }
  StepState state() const { return state_.values()[0]; }
  std::vector<ParamScalars<AdamW>> scalars() const { return scalars_.values(); }
  std::vector<std::int64_t> counts() const { return steps_.values(); }

 private:
  ReportShape shape_;
  Stream stream_;
  DeviceArray<AdamW> groups_;
  DeviceArray<int> group_of_param_;
  DeviceArray<std::int64_t> steps_;
  DeviceArray<StepState> state_;
  DeviceArray<LossScale> loss_scale_;
  DeviceArray<ParamScalars<AdamW>> scalars_;
};

std::vector<ReportShape> shapes() {
  return {{.units = 1, .params = 1, .world_size = 1},
          {.units = 3, .params = 17, .world_size = 2},
          {.units = 512, .params = 511, .world_size = 1},
          {.units = 700, .params = 2500, .world_size = 3}};  // more than the threads of a block
}

using CudaFinishReport = OnDevice;

TEST_F(CudaFinishReport, AddsTheNormInOrderAndClips) {
  for (const ReportShape& shape : shapes()) {
    Reports reports(shape);
    Steps steps(shape, std::vector<int>(shape.params), stream());
    const double norm = reports.norm();
    steps.step(reports, 0);
    EXPECT_EQ(steps.state().norm, norm);
    EXPECT_EQ(steps.state().grad_scale, 1.0F);
    for (const double max_norm : {0.5 * norm, 1.0, 2 * norm}) {
      steps.step(reports, max_norm);
      EXPECT_EQ(steps.state().grad_scale, clip_factor(norm, max_norm));
    }
    EXPECT_EQ(steps.state().steps, 4U);
    EXPECT_EQ(steps.state().skip, 0U);
  }
}

TEST_F(CudaFinishReport, StepsWhatAnyRankHasAndAGroupTakes) {
  for (const ReportShape& shape : shapes()) {
    Reports reports(shape);
    std::vector<int> group_of_param(shape.params);
    std::vector<bool> stepped(shape.params);
    for (std::size_t param = 0; param < shape.params; ++param) {
      group_of_param[param] = static_cast<int>(param % 3) - 1;  // no_group, 0, 1
      const bool present = param % 5 != 4;
      if (present) reports.set_present(static_cast<int>(param) % shape.world_size, param);
      stepped[param] = present && group_of_param[param] != no_group;
    }
    Steps steps(shape, group_of_param, stream());
    for (std::int64_t count = 1; count <= 3; ++count) {
      steps.step(reports, 1.0);
      const std::vector<ParamScalars<AdamW>> scalars = steps.scalars();
      const std::vector<std::int64_t> counts = steps.counts();
      for (std::size_t param = 0; param < shape.params; ++param) {
        ASSERT_EQ(counts[param], stepped[param] ? count : 0) << param;
        ASSERT_EQ(scalars[param].stepped, stepped[param] ? 1U : 0U) << param;
        if (stepped[param])
          expect_scalars(scalars[param], groups[static_cast<std::size_t>(group_of_param[param])], count);
      }
    }
  }
}

TEST_F(CudaFinishReport, SkipsAStepWithABadGradientAndSaysWhere) {
  const ReportShape shape = shapes().back();
  Reports good(shape), bad(shape);
  for (std::size_t param = 0; param < shape.params; ++param) {
    good.set_present(0, param);
    bad.set_present(0, param);
  }
  bad.set(2, 650, {1, 4, 9});
  bad.set(1, 650, {2, 3, 12345});
  bad.set(0, 699, {0, 1, 0});
  Steps steps(shape, std::vector<int>(shape.params), stream());

  steps.step(good, 1.0);
  steps.step(bad, 1.0);
  steps.step(bad, 1.0);
  StepState state = steps.state();
  EXPECT_EQ(state.skip, 1U);
  EXPECT_TRUE(std::isnan(state.norm));
  EXPECT_EQ(state.non_finite, 8U);
  EXPECT_EQ(state.steps, 1U);
  EXPECT_EQ(state.skipped, 2U);
  EXPECT_EQ(state.skipped_in_a_row, 2U);
  EXPECT_EQ(std::tuple(state.bad_unit, state.bad_rank, state.bad_element), std::tuple(650U, 1U, 12345U));
  EXPECT_EQ(steps.counts(), std::vector<std::int64_t>(shape.params, 1));
  for (const ParamScalars<AdamW>& scalars : steps.scalars()) ASSERT_EQ(scalars.stepped, 0U);

  steps.step(good, 1.0);
  state = steps.state();
  EXPECT_EQ(state.skip, 0U);
  EXPECT_EQ(state.non_finite, 0U);
  EXPECT_EQ(state.steps, 2U);
  EXPECT_EQ(state.skipped, 2U);
  EXPECT_EQ(state.skipped_in_a_row, 0U);
  EXPECT_EQ(steps.counts(), std::vector<std::int64_t>(shape.params, 2));
}

TEST_F(CudaFinishReport, TakesTheLossScaleOutOfNormAndGradients) {
  const ReportShape shape = shapes()[1];
  Reports reports(shape);
  Steps steps(shape, std::vector<int>(shape.params), stream());
  for (const float scale : {65536.0F, 3.0F}) {
    steps.set_loss_scale({scale});
    const double norm = reports.norm() / scale;
    steps.step(reports, 0);
    EXPECT_EQ(steps.state().norm, norm);
    EXPECT_EQ(steps.state().grad_scale, 1 / scale);
    steps.step(reports, 0.5 * norm);
    EXPECT_EQ(steps.state().grad_scale, clip_factor(norm, 0.5 * norm) / scale);
  }
}

TEST_F(CudaFinishReport, MovesTheLossScaleAsTheHostDoes) {
  const ReportShape shape = shapes().front();
  Reports good(shape), bad(shape);
  bad.set(0, 0, {1, 1, 0});
  const ScaleRule rule{.growth_factor = 1.7, .backoff_factor = 0.3, .growth_interval = 3};
  Steps steps(shape, std::vector<int>(shape.params), stream());
  LossScale expected{1e30F};
  steps.set_loss_scale(expected);
  for (int step = 0; step < 300; ++step) {
    const bool overflows = step % 7 == 3 && step % 100 < 50;
    steps.step(overflows ? bad : good, 0);
    expected.overflow = overflows ? 1 : 0;
    EXPECT_EQ(steps.loss_scale(), expected);
    steps.update_loss_scale(rule);
    expected = expected.updated(rule);
    ASSERT_EQ(steps.loss_scale(), expected) << "step " << step;
  }
}

TEST_F(CudaFinishReport, WorksOutTheScalarsOfEachRule) {
  const ReportShape shape{.units = 1, .params = 1, .world_size = 1};
  Reports reports(shape);
  reports.set_present(0, 0);
  const DeviceArray<std::byte> there(reports.bytes(), stream());
  const DeviceArray<int> group_of_param({0}, stream());
  const DeviceArray<LossScale> loss_scale = one_of(LossScale{}, stream());
  const auto expect_scalars_of = [&]<typename R>(const R& rule) {
    const DeviceArray<R> group = one_of(rule, stream());
    const DeviceArray<std::int64_t> steps({0}, stream());
    const DeviceArray<StepState> state = one_of(StepState{}, stream());
    const DeviceArray<ParamScalars<R>> scalars = one_of(ParamScalars<R>{}, stream());
    for (std::int64_t step = 1; step <= 3; ++step) {
      cuda::finish_report(rule, shape, there.data(), group.data(), group_of_param.data(), steps.data(), 0,
                          loss_scale.data(), state.data(), scalars.data(), stream());
      const ParamScalars<R> actual = scalars.values()[0];
      EXPECT_EQ(actual.stepped, 1U);
      const auto actual_floats = floats_of(actual.of_rule), expected = floats_of(rule.scalars(step));
      for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_FLOAT_EQ(actual_floats[i], expected[i]) << i;
    }
  };
  for (const Rule& rule : all_rules()) std::visit(expect_scalars_of, rule);
}

TEST_F(CudaFinishReport, TakesAModelWithoutAnythingToTrain) {
  const ReportShape shape{.units = 0, .params = 0, .world_size = 2};
  Steps steps(shape, {}, stream());
  steps.step(Reports(shape), 1.0);
  EXPECT_EQ(steps.state().norm, 0);
  EXPECT_EQ(steps.state().steps, 1U);
}

}  // namespace
}  // namespace aliquot::test
