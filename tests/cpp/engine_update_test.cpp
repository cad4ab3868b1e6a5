// An optimizer of somebody else's between begin_update and end_update: with the same rule, the bits of Engine::step.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "aliquot/kernels.h"
#include "toy_training.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

constexpr int world_size = 3;
constexpr std::size_t block = 3;

/// AdamW over the parts that an engine gives.
class Stranger {
 public:
  StepResult step(Engine& engine) {
    const StepResult result = engine.begin_update(toy_max_norm);
    for (std::size_t unit = 0; unit < engine.unit_count() && !result.skipped; ++unit) {
      update(engine, unit, result.grad_scale);
    }
    engine.end_update();
    engine.clear_gradients();
    return result;
  }

 private:
  struct State {
    std::int64_t steps = 0;
    std::vector<float> exp_avg, exp_avg_sq;
  };

  void update(Engine& engine, std::size_t unit, float grad_scale) {
    const std::vector<Engine::Part> values = engine.values_to_step(unit), gradients = engine.gradients_to_step(unit);
    require(values.size() == gradients.size(), "as many gradients as values");
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (gradients[i].data == nullptr) continue;
      const std::size_t numel = values[i].numel;
      State& state = states_[{unit, values[i].param, values[i].begin}];
      state.exp_avg.resize(numel);
      state.exp_avg_sq.resize(numel);
      aliquot::update(toy_rule, {++state.steps, grad_scale}, {static_cast<float*>(values[i].data), numel},
                      {static_cast<const float*>(gradients[i].data), numel}, {state.exp_avg, state.exp_avg_sq});
    }
  }

  std::map<std::tuple<std::size_t, std::size_t, std::size_t>, State> states_;
};

class EngineUpdates : public ::testing::TestWithParam<std::tuple<Transport, int>> {
 protected:
  void run(const std::function<void(Communicator&, const EngineOptions&)>& body) const {
    const EngineOptions options{.stage = Stage(std::get<1>(GetParam())), .gatherer = {.poison = true}};
    run_world(std::get<0>(GetParam()), world_size, [&](Communicator& communicator) {
      body(communicator, options);
      communicator.barrier({"end", ""});
    });
  }
};

void require_same_parameters(const ShardStore& a, const ShardStore& b) {
  for (std::size_t unit = 0; unit < a.unit_count(); ++unit) {
    require(same_bits(a.block(unit, Role::param), b.block(unit, Role::param)),
            "unit '" + a.layout(unit).unit().name + "' has other bits");
  }
}

TEST_P(EngineUpdates, OfSomebodyElseGiveTheBitsOfStep) {
  run([](Communicator& communicator, const EngineOptions& options) {
    ToyTraining training(communicator, options), other(communicator, options);
    Stranger stranger;
    for (std::size_t step = 0; step < 4; ++step) {
      const StepResult expected = training.step(step);
      other.forward();
      other.backward(step);
      const StepResult result = stranger.step(other.engine);
      require(result.grad_norm == expected.grad_norm && result.counts.steps == expected.counts.steps, "another result");
    }
    require_same_parameters(training.engine.store(), other.engine.store());
  });
}

TEST_P(EngineUpdates, AreSkippedAlikeWhereAGradientIsNotFinite) {
  run([](Communicator& communicator, const EngineOptions& options) {
    ToyTraining training(communicator, options);
    training.forward();
    training.backward(1);
    if (communicator.rank() == 1) {
      const auto own = training.engine.store().own(block, Role::grad);
      own[0] = std::nanf("");
    }
    training.engine.scale_gradients(1);
    const StepResult result = training.engine.begin_update(toy_max_norm);
    require(result.skipped && result.counts.skipped == 1, "not skipped");
    require(result.first_bad.starts_with("block"), "the first bad one is '" + result.first_bad + "'");
    training.engine.end_update();
    require(training.engine.statistics().steps.skipped == 1, "not counted");
  });
}

INSTANTIATE_TEST_SUITE_P(Engine, EngineUpdates, every_transport_and_stage(), name_of_case);

}  // namespace
}  // namespace aliquot
