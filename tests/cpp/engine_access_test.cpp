// Reading and writing parameters and gradients between steps.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "aliquot/error.h"
#include "toy_training.h"

namespace aliquot {
namespace {

using ::testing::HasSubstr;
using namespace test;  // NOLINT(google-build-using-namespace)

class EngineAccess : public ::testing::TestWithParam<std::tuple<Transport, int>> {
 protected:
  EngineOptions options() const {
    return {.stage = Stage(std::get<1>(GetParam())), .gatherer = {.landing = Landing::slots, .ahead_bytes = 4096}};
  }
  void run(const RankBody& body) const {
    run_world(std::get<0>(GetParam()), 3, [&](Communicator& communicator) {
      body(communicator);
      communicator.barrier({"end", ""});
    });
  }
};

// Slots that were gathered before the write hold bytes of an older version.
TEST_P(EngineAccess, WhatIsWrittenIsReadAndGathered) {
  run([&](Communicator& communicator) {
    ToyTraining training(communicator, options());
    Engine& engine = training.engine;
    for (std::size_t version = 1; version < 5; ++version) {
      training.forward();
      const auto values = [&](std::size_t unit, std::size_t p) {
        return numbers({version, unit, p}, engine.layout(unit).param(p).size());
      };
      engine.begin_write();
      for (std::size_t unit = 0; unit < engine.unit_count(); ++unit) {
        for (std::size_t p = 0; p < engine.layout(unit).unit().params.size(); ++p) {
          engine.write(unit, p, values(unit, p).data());
        }
      }
      engine.end_write();
      for (std::size_t unit = 0; unit < engine.unit_count(); ++unit) {
        std::vector<float> whole(engine.layout(unit).numel());
        engine.read(unit, whole.data());
        const auto* gathered = static_cast<const float*>(engine.pre_forward(unit));
        for (std::size_t p = 0; p < engine.layout(unit).unit().params.size(); ++p) {
          const Range range = engine.layout(unit).param(p);
          require(same_bits(std::span(whole).subspan(range.begin, range.size()), values(unit, p)),
                  "read another value");
          require(same_bits({gathered + range.begin, range.size()}, values(unit, p)), "gathered another value");
        }
        engine.post_forward(unit);
      }
      engine.finish_forward();
      engine.reset();
    }
  });
}

// Ranks write to their gradients as soon as they have them, while others may still be fetching theirs.
TEST_P(EngineAccess, AWholeGradientIsThisRanksToWrite) {
  if (Stage(std::get<1>(GetParam())).shards_gradients()) return;
  run([&](Communicator& communicator) {
    constexpr std::size_t numel = 400'000;
    Engine engine({{.name = "large", .params = {{"weight", numel}}}}, communicator, host_memory(), options());
    const std::vector<float> ones(numel, 1.0F);
    for (int round = 0; round < 20; ++round) {
      engine.pre_backward(0);
      require(engine.post_backward(0, {ones.data()}), "there is room for one unit");
      engine.finish_backward({});
      float* whole = engine.whole_gradient(0);
      engine.scale_gradients(static_cast<float>(2 + communicator.rank()));
      require(
          std::all_of(whole, whole + numel, [&](float g) { return g == static_cast<float>(2 + communicator.rank()); }),
          "another rank's gradient");
      engine.clear_gradients();
    }
  });
}

TEST_P(EngineAccess, AParameterIsThisRanksToWriteWhereItHoldsItWhole) {
  if (Stage(std::get<1>(GetParam())).shards_parameters()) return;
  run([&](Communicator& communicator) {
    constexpr std::size_t numel = 400'000;
    Engine engine({{.name = "large", .params = {{"weight", numel}}}}, communicator, host_memory(), options());
    engine.set_groups({{0}});
    const std::vector<float> ones(numel, 1.0F);
    for (int round = 0; round < 20; ++round) {
      engine.pre_backward(0);
      engine.post_backward(0, {ones.data()});
      engine.finish_backward({});
      engine.step(std::array{Rule(AdamW{.lr = 1, .weight_decay = 0})}, std::nullopt);
      engine.clear_gradients();
      auto* whole = static_cast<float*>(const_cast<void*>(engine.pre_forward(0)));
      require(std::all_of(whole, whole + numel, [&](float p) { return p < 0; }), "another rank's parameter");
      std::fill_n(whole, numel, 0.0F);
    }
  });
}

TEST_P(EngineAccess, GradientsAreReportedScaledAndClearedAlike) {
  run([&](Communicator& communicator) {
    ToyTraining training(communicator, options());
    Engine& engine = training.engine;
    training.forward();
    training.backward(3);
    const GradientReport report = engine.gradient_report();
    require(report.norm > 0 && report.non_finite == 0 && report.first_bad.empty(), "the report");
    for (std::size_t unit = 0; unit < engine.unit_count(); ++unit) {
      for (std::size_t p = 0; p < report.present[unit].size(); ++p) {
        bool expected = false;
        for (std::size_t rank = 0; rank < 3; ++rank) expected = expected || toy_has_gradient(rank, 3, unit, p);
        require(report.present[unit][p] == expected, "presence in the report");
      }
    }
    engine.scale_gradients(0.5F);
    require(engine.gradient_report().norm == report.norm / 2, "a scaled norm");
    for (std::size_t p = 0; p < 4; ++p) engine.clear_gradient(3, p);
    require(!engine.has_gradient(3, 0) && engine.gradient_report().norm < report.norm / 2, "a cleared gradient");
    engine.clear_gradients();
    require(engine.gradient_report().norm == 0, "all gradients cleared");
  });
}

double sum_of(const std::vector<std::vector<double>>& squares) {
  double sum = 0;
  for (const std::vector<double>& of_unit : squares) {
    for (const double square : of_unit) sum += square;
  }
  return sum;
}

TEST_P(EngineAccess, GradientsOfOneParameterAreMeasuredAndScaled) {
  run([&](Communicator& communicator) {
    ToyTraining training(communicator, options());
    Engine& engine = training.engine;
    engine.set_loss_scale({4});
    training.forward();
    training.backward(3);
    const auto before = engine.square_sums();
    const double norm = engine.gradient_report().norm;
    require(std::abs(std::sqrt(sum_of(before)) - norm) <= 1e-12 * norm, "the sum is not the norm's");
    constexpr std::size_t block = 3, down = 3, frozen = 2;
    require(before[block][down] > 0 && before[frozen][0] == 0, "a parameter's sum");
    engine.scale_gradient(block, down, 0.5F);
    engine.scale_gradient(frozen, 0, 0.5F);
    auto after = engine.square_sums();
    require(after[block][down] == before[block][down] / 4, "not scaled");
    after[block][down] = before[block][down];
    require(after == before, "others were scaled");
    require(engine.gradient_report().norm < norm, "the norm of before");
  });
}

INSTANTIATE_TEST_SUITE_P(Engine, EngineAccess, every_transport_and_stage(), name_of_case);

class EngineAlone : public ::testing::Test {
 protected:
  Engine make(const EngineOptions& options) { return {toy_units(), *communicators_[0], host_memory(), options}; }

 private:
  std::vector<std::unique_ptr<Communicator>> communicators_ = make_thread_communicators(1);
};

TEST_F(EngineAlone, PoisonReachesWhoReadsAfterRelease) {
  Engine engine = make({.stage = Stage(3), .gatherer = {.poison = true}});
  const auto* embed = static_cast<const float*>(engine.pre_forward(1));
  EXPECT_EQ(embed[0], 0.0F);
  engine.post_forward(1);
  EXPECT_TRUE(std::isnan(embed[0]));
}

TEST_F(EngineAlone, GatheringAheadGathersNothingTwice) {
  Engine engine = make({.stage = Stage(3), .gatherer = {.landing = Landing::slots, .ahead_bytes = 1'000'000}});
  const auto walk = [&] {
    const std::uint64_t before = engine.statistics().gather.gathers;
    for (const std::size_t unit : {1u, 2u, 3u, 5u}) {
      engine.pre_forward(unit);
      engine.post_forward(unit);
    }
    engine.finish_forward();
    engine.begin_write();
    engine.end_write();
    return engine.statistics().gather.gathers - before;
  };
  for (int pass = 0; pass < 3; ++pass) EXPECT_EQ(walk(), 4u) << "pass " << pass;
}

TEST_F(EngineAlone, AStepNeedsItsGroupsFirst) {
  Engine engine = make({});
  EXPECT_THROW(engine.step(toy_groups, std::nullopt), InvalidArgument);
}

TEST_F(EngineAlone, NoRankHoldsAWholeGradientAtStage2) {
  Engine engine = make({.stage = Stage(2), .gatherer = {}});
  EXPECT_THAT(message_of([&] { engine.whole_gradient(1); }), AllOf(HasSubstr("'embed'"), HasSubstr("stage 2")));
}

TEST_F(EngineAlone, BytesAreThoseOfStoreSlotsAndOutboxes) {
  Engine engine = make({.stage = Stage(3), .gatherer = {.landing = Landing::slots}});
  engine.pre_forward(1);
  const auto bytes = engine.statistics().bytes;
  EXPECT_EQ(bytes.at("param"), engine.store().bytes().at("param"));
  EXPECT_EQ(bytes.at("slot"), engine.layout(2).bytes()) << "one slot, as large as the largest unit";
  EXPECT_GE(bytes.at("outbox"), engine.layout(1).bytes());
}

}  // namespace
}  // namespace aliquot
