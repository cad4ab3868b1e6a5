// What a checkpoint takes of an engine, put into another one: that one goes on to the same bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "toy_training.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

constexpr int world_size = 3;
constexpr std::array saved_roles{Role::param, Role::grad, Role::exp_avg, Role::exp_avg_sq};

/// Every parameter whole, in fp32, by unit, role and parameter.
using Values = std::map<std::tuple<std::size_t, Role, std::size_t>, std::vector<float>>;

bool is_there(const Engine& engine, std::size_t unit, Role role) {
  return role == Role::grad ? engine.holds_gradients(unit) : engine.store().holds(unit, role);
}

/// What the ranks save, joined; each element by one rank.
Values saved(const Engine& engine, Communicator& communicator) {
  Values values;
  for (std::size_t unit = 0; unit < engine.unit_count(); ++unit) {
    const auto& params = engine.layout(unit).unit().params;
    for (const Role role : saved_roles) {
      if (!is_there(engine, unit, role)) continue;
      const std::vector<Engine::Part> parts = engine.parts_to_save(unit, role);
      for (std::size_t param = 0; param < params.size(); ++param) {
        std::vector<float> whole(params[param].numel), savers(params[param].numel);
        for (const Engine::Part& part : parts) {
          if (part.param != param) continue;
          std::memcpy(&whole[part.begin], part.data, part.numel * sizeof(float));
          std::fill_n(savers.begin() + static_cast<std::ptrdiff_t>(part.begin), part.numel, 1.0F);
        }
        communicator.all_reduce({"values", ""}, whole);
        communicator.all_reduce({"savers", ""}, savers);
        require(std::ranges::all_of(savers, [](float count) { return count == 1; }), "saved by one rank each");
        values[{unit, role, param}] = std::move(whole);
      }
    }
  }
  return values;
}

void load(Engine& engine, const Values& values, const Engine& source) {
  const auto put = [&](std::size_t unit, Role role) {
    for (const Engine::Part& part : engine.parts_to_load(unit, role)) {
      std::memcpy(part.data, &values.at({unit, role, part.param})[part.begin], part.numel * sizeof(float));
    }
  };
  engine.begin_write();
  engine.clear_gradients();
  for (std::size_t unit = 0; unit < engine.unit_count(); ++unit) {
    for (const Role role : saved_roles) {
      if (role == Role::grad && values.contains({unit, role, 0})) {
        std::vector<bool> present(engine.layout(unit).unit().params.size());
        for (std::size_t param = 0; param < present.size(); ++param) present[param] = source.has_gradient(unit, param);
        engine.restore_gradients(unit, present);
      }
      if (is_there(engine, unit, role)) put(unit, role);
    }
  }
  engine.share_gradients();
  engine.end_update();
}

class EngineCheckpoints : public ::testing::TestWithParam<std::tuple<Transport, int>> {};

TEST_P(EngineCheckpoints, GoOnToTheSameBits) {
  const EngineOptions options{.stage = Stage(std::get<1>(GetParam())), .gatherer = {.poison = true}};
  run_world(std::get<0>(GetParam()), world_size, [&](Communicator& communicator) {
    ToyTraining training(communicator, options), other(communicator, options);
    for (const std::size_t step : {1, 2, 3}) training.step(step);
    other.step(7);
    training.forward();
    training.backward(6);  // midway through accumulation
    load(other.engine, saved(training.engine, communicator), training.engine);
    other.engine.set_param_steps(training.engine.param_steps());
    other.engine.set_step_counts(training.engine.step_counts());
    for (ToyTraining* each : {&training, &other}) {
      each->forward();
      each->backward(8);
    }
    const GradientReport expected = training.engine.gradient_report(), report = other.engine.gradient_report();
    require(report.norm == expected.norm, "another norm");
    training.engine.step(toy_groups, toy_max_norm);
    other.engine.step(toy_groups, toy_max_norm);
    require(other.engine.step_counts().steps == training.engine.step_counts().steps, "another count");
    require(same_bits(other.parameters(), training.parameters()), "other bits");
    communicator.barrier({"end", ""});
  });
}

INSTANTIATE_TEST_SUITE_P(Engine, EngineCheckpoints, every_transport_and_stage(), name_of_case);

TEST(EngineCheckpointArguments, MustNameEveryParameter) {
  run_world(Transport::one_sided_threads, 1, [](Communicator& communicator) {
    ToyTraining training(communicator, {});
    const auto refused = [](const auto& call) {
      try {
        call();
      } catch (const InvalidArgument&) {
        return true;
      }
      return false;
    };
    require(refused([&] { training.engine.set_param_steps({}); }), "no counts");
    require(refused([&] { training.engine.restore_gradients(0, {true}); }), "one of two parameters");
  });
}

}  // namespace
}  // namespace aliquot
