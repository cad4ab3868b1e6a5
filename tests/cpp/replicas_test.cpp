// Two groups of two ranks, each with the whole model: the same bits in both, and what one group of four comes to.
#include <gtest/gtest.h>

#include <mutex>

#include "aliquot/error.h"
#include "hosts.h"
#include "toy_training.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

constexpr std::size_t step_count = 6;

struct Trained {
  std::vector<float> parameters;
  std::vector<double> norms;

  friend bool operator==(const Trained& a, const Trained& b) {
    return a.norms == b.norms && same_bits(a.parameters, b.parameters);
  }
};

Trained trained(ToyTraining& training, bool accumulating) {
  Trained result;
  for (std::size_t step = 0; step < step_count; ++step) {
    if (accumulating) {
      training.forward();
      training.backward(step + 100);
    }
    result.norms.push_back(training.step(step).grad_norm);
  }
  result.parameters = training.parameters();
  return result;
}

struct Case {
  const char* name;
  bool two_sided;
  bool accumulating;
};

class Replicated : public ::testing::TestWithParam<Case> {};

TEST_P(Replicated, GroupsAndStagesAgreeToTheBitAndNearlyWithOneGroup) {
  const Case made = GetParam();
  std::vector<Trained> all;
  std::mutex mutex;
  for (int stage = 0; stage <= 3; ++stage) {
    expect_success(run_hosts(2, 2, [&](Communicator& inside, Communicator& between) {
      TwoSided hidden_inside(inside), hidden_between(between);
      Communicator& shards = made.two_sided ? hidden_inside : inside;
      EngineOptions options{.stage = Stage(stage), .gatherer = {.poison = made.two_sided}};
      options.replicas = made.two_sided ? &hidden_between : &between;
      ToyTraining training(shards, options, DType::fp32, between.rank() * 2 + inside.rank());
      Trained mine = trained(training, made.accumulating);
      shards.barrier({"end", ""});
      const std::lock_guard lock(mutex);
      all.push_back(std::move(mine));
    }));
  }
  ASSERT_EQ(all.size(), 16U);
  for (const Trained& other : all) EXPECT_TRUE(other == all.front());

  Trained flat;
  run_world(Transport::one_sided_threads, 4, [&](Communicator& communicator) {
    ToyTraining training(communicator, {.gatherer = {}});
    const Trained mine = trained(training, made.accumulating);
    communicator.barrier({"end", ""});
    if (communicator.rank() == 0) flat = mine;
  });
  for (std::size_t i = 0; i < flat.parameters.size(); ++i) {
    EXPECT_NEAR(all.front().parameters[i], flat.parameters[i], 1e-5);
  }
  for (std::size_t i = 0; i < step_count; ++i) EXPECT_NEAR(all.front().norms[i], flat.norms[i], 1e-5 * flat.norms[i]);
}

INSTANTIATE_TEST_SUITE_P(Engine, Replicated,
                         ::testing::Values(Case{"one_sided", false, false}, Case{"one_sided_accumulating", false, true},
                                           Case{"two_sided", true, false}, Case{"two_sided_accumulating", true, true}),
                         [](const auto& with) { return with.param.name; });

TEST(Replicas, AGroupThatGivesUpIsHeardOfAndTheStepRepeated) {
  expect_success(run_hosts(2, 2, [](Communicator& inside, Communicator& between) {
    const int rank = between.rank() * 2 + inside.rank();
    EngineOptions options{.gatherer = {}};
    options.replicas = &between;
    ToyTraining failed(inside, options, DType::fp32, rank), spared(inside, options, DType::fp32, rank);
    for (std::size_t step = 0; step < 3; ++step) {
      failed.forward();
      if (rank != 1) {
        const std::string text = error_of<CommunicatorError>([&] { failed.backward(step + 50); });
        const std::string culprit = rank == 2 ? "rank 0 gave up" : "rank 1 gave up";
        require(text.find(culprit) != std::string::npos || rank == 0, text);
      }
      failed.engine.reset();
      failed.step(step);
      spared.step(step);
    }
    require(same_bits(failed.parameters(), spared.parameters()), "not as if the failed backward had never been");
    inside.barrier({"end", ""});
  }));
}

TEST(Replicas, GroupsThatStepApartAreTold) {
  expect_success(run_hosts(2, 2, [](Communicator& inside, Communicator& between) {
    EngineOptions options{.gatherer = {}};
    options.replicas = &between;
    ToyTraining training(inside, options, DType::fp32, between.rank() * 2 + inside.rank());
    training.forward();
    training.backward(0);
    if (between.rank() == 0) training.engine.step(toy_groups, toy_max_norm);
    training.forward();
    const std::string text = error_of<CommunicatorError>([&] { training.backward(1); });
    require(text.find("gradients of step 1") != std::string::npos, text);
    require(text.find("gradients of step 0") != std::string::npos, text);
    inside.barrier({"end", ""});
  }));
}

}  // namespace
}  // namespace aliquot
