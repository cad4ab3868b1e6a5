// A toy model trained at every stage over every transport: to the same bits, and to what a serial computation in double
// precision gives.
#include "aliquot/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "toy_training.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

constexpr int world_size = 3;
constexpr std::size_t step_count = 7;

struct Trained {
  std::vector<float> parameters;
  std::vector<double> norms;
};

Trained train(Communicator& communicator, const EngineOptions& options, DType dtype = DType::fp32) {
  ToyTraining training(communicator, options, dtype);
  Trained trained;
  for (std::size_t step = 0; step < step_count; ++step) trained.norms.push_back(training.step(step).grad_norm);
  trained.parameters = training.parameters();
  require(training.engine.statistics().steps.steps == step_count, "a step was skipped");
  communicator.barrier({"end", ""});
  return trained;
}

// What rank 0 gets at stage 0, where nothing is gathered.
Trained train_unsharded(const StoreOptions& store = {}, DType dtype = DType::fp32) {
  Trained of_rank_0;
  run_world(Transport::one_sided_threads, world_size, [&](Communicator& communicator) {
    const Trained mine = train(communicator, {.stage = Stage(0), .gatherer = {}, .store = store}, dtype);
    if (communicator.rank() == 0) of_rank_0 = mine;
  });
  return of_rank_0;
}

const Trained& unsharded() {
  static const Trained trained = train_unsharded();
  return trained;
}

struct Element {
  double param, exp_avg = 0, exp_avg_sq = 0;
  void step(double grad, int step) {
    param *= 1 - toy_rule.lr * toy_rule.weight_decay;
    exp_avg += (grad - exp_avg) * (1 - toy_rule.beta1);
    exp_avg_sq = exp_avg_sq * toy_rule.beta2 + (1 - toy_rule.beta2) * grad * grad;
    param -= toy_rule.lr / (1 - std::pow(toy_rule.beta1, step)) * exp_avg /
             (std::sqrt(exp_avg_sq / (1 - std::pow(toy_rule.beta2, step))) + toy_rule.eps);
  }
};

// One parameter, its elements and its count of steps; the gradient of a step, a mean over ranks.
struct Serial {
  std::size_t unit, param;
  std::vector<Element> elements;
  std::vector<double> gradient;
  bool present = false;
  int steps = 0;

  void find_gradient(std::size_t step) {
    std::vector<float> values;
    for (const Element& element : elements) values.push_back(static_cast<float>(element.param));
    gradient.assign(values.size(), 0);
    present = false;
    for (std::size_t rank = 0; rank < world_size; ++rank) {
      if (!toy_has_gradient(rank, step, unit, param)) continue;
      present = true;
      const std::vector<float> of_rank = toy_gradient(rank, step, unit, param, values);
      for (std::size_t i = 0; i < gradient.size(); ++i) gradient[i] += double{of_rank[i]} / world_size;
    }
  }
};

class SerialTraining {
 public:
  SerialTraining() {
    for (std::size_t unit = 0; unit < toy_units().size(); ++unit) {
      for (std::size_t p = 0; p < toy_units()[unit].params.size(); ++p) {
        Serial& serial = params.emplace_back(Serial{.unit = unit, .param = p, .elements = {}, .gradient = {}});
        for (const float value : toy_initial(unit, p)) serial.elements.push_back({value});
      }
    }
  }

  /// Returns the norm.
  double step(std::size_t number) {
    double square_sum = 0;
    for (Serial& serial : params) {
      serial.find_gradient(number);
      for (const double g : serial.gradient) square_sum += g * g;
    }
    const double norm = std::sqrt(square_sum);
    const double clip = std::min(1.0, toy_max_norm / (norm + 1e-6));
    for (Serial& serial : params) {
      if (!serial.present) continue;
      ++serial.steps;
      for (std::size_t i = 0; i < serial.elements.size(); ++i) {
        serial.elements[i].step(serial.gradient[i] * clip, serial.steps);
      }
    }
    return norm;
  }

  std::vector<Serial> params;
};

TEST(Engine, EqualsASerialComputationInDoublePrecision) {
  SerialTraining serial;
  for (std::size_t step = 0; step < step_count; ++step) {
    const double norm = serial.step(step);
    EXPECT_NEAR(unsharded().norms[step], norm, 1e-5 * norm);
  }
  std::size_t next = 0;
  for (const Serial& param : serial.params) {
    for (const Element& element : param.elements) EXPECT_NEAR(unsharded().parameters[next++], element.param, 1e-5);
  }
  EXPECT_EQ(next, unsharded().parameters.size());
  EXPECT_GT(unsharded().norms[1], toy_max_norm) << "the clip should have bitten";
}

struct Case {
  std::string name;
  Transport transport;
  GathererOptions gatherer;
};

const std::vector<Case> cases = {
    {"one_sided_in_place", Transport::one_sided_threads, {}},
    {"one_sided_slots_ahead", Transport::one_sided_threads, {.landing = Landing::slots, .ahead_bytes = 8192}},
    {"one_sided_poison", Transport::one_sided_threads, {.ahead_bytes = 100'000, .poison = true}},
    {"two_sided_poison", Transport::two_sided_threads, {.poison = true}},
    {"two_sided_ahead", Transport::two_sided_threads, {.slots = 3, .ahead_bytes = 100'000}},
    {"shared_memory", Transport::processes, {}},
    {"shared_memory_poison", Transport::processes, {.ahead_bytes = 8192, .poison = true}}};

class Engines : public ::testing::TestWithParam<std::tuple<Case, int>> {};

TEST_P(Engines, TrainToTheBitsOfTheUnshardedModelOnEveryRank) {
  const auto& [made, stage] = GetParam();
  const Trained& expected = unsharded();
  run_world(made.transport, world_size, [&](Communicator& communicator) {
    const Trained mine = train(communicator, {.stage = Stage(stage), .gatherer = made.gatherer});
    require(mine.norms == expected.norms, "other gradient norms");
    require(same_bits(mine.parameters, expected.parameters), "other parameters");
  });
}

INSTANTIATE_TEST_SUITE_P(Engine, Engines, ::testing::Combine(::testing::ValuesIn(cases), ::testing::Range(0, 4)),
                         [](const auto& with) {
                           return std::get<0>(with.param).name + "_stage_" + std::to_string(std::get<1>(with.param));
                         });

struct Half {
  std::string name;
  DType dtype;
  MasterForm master;
};

const std::vector<Half> halves = {{"bf16_split", DType::bf16, MasterForm::low16},
                                  {"bf16", DType::bf16, MasterForm::fp32},
                                  {"fp16", DType::fp16, MasterForm::fp32}};

class HalfEngines : public ::testing::TestWithParam<std::tuple<Half, Case>> {};

// Near: on average by less than what neighbouring bf16 numbers differ by.
TEST_P(HalfEngines, TrainToTheSameBitsAtEveryStageAndNearToFp32) {
  const auto& [half, made] = GetParam();
  const StoreOptions store{.master = half.master, .transient = {}};
  const Trained expected = train_unsharded(store, half.dtype);
  for (int stage = 0; stage <= 3; ++stage) {
    run_world(made.transport, world_size, [&](Communicator& communicator) {
      const EngineOptions options{.stage = Stage(stage), .gatherer = made.gatherer, .store = store};
      const Trained mine = train(communicator, options, half.dtype);
      require(mine.norms == expected.norms, "other gradient norms");
      require(same_bits(mine.parameters, expected.parameters), "other parameters");
    });
  }
  double distance = 0, size = 0;
  for (std::size_t i = 0; i < expected.parameters.size(); ++i) {
    distance += std::abs(expected.parameters[i] - unsharded().parameters[i]);
    size += std::abs(unsharded().parameters[i]);
  }
  EXPECT_LT(distance, 0x1p-8 * size);
  EXPECT_GT(distance, 0);
}

INSTANTIATE_TEST_SUITE_P(Engine, HalfEngines,
                         ::testing::Combine(::testing::ValuesIn(halves), ::testing::ValuesIn(cases)),
                         [](const auto& with) {
                           return std::get<0>(with.param).name + "_" + std::get<1>(with.param).name;
                         });

}  // namespace
}  // namespace aliquot
