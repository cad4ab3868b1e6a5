// HSDP on GPUs: two groups of two ranks, each with the whole model; peer inside a group, nccl between.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "aliquot/engine.h"
#include "aliquot/error.h"
#include "device_training.h"
#include "gpu_ranks.h"
#include "laggard.h"

namespace aliquot::test {
namespace {

using Weights = std::vector<std::vector<std::byte>>;

class ReplicasOnGpus : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() < 4) GTEST_SKIP() << "needs 4 GPUs, there are " << cuda_device_count();
  }

  static EngineOptions options(int stage, Communicator& between) {
    EngineOptions options;
    options.stage = Stage(stage);
    options.gatherer.ahead_bytes = 1 << 20;
    options.replicas = &between;
    return options;
  }
  static Weights trained(GpuRank& rank, DeviceTraining& training) {
    for (std::size_t step = 0; step < DeviceTraining::steps; ++step) training.step(step);
    return training.parameters(rank.device);
  }
};

/// Of a unit. Behind them is padding, which depends on the size of the group.
std::vector<float> numbers_of(const std::vector<std::byte>& unit, std::size_t count) {
  const auto* const begin = reinterpret_cast<const float*>(unit.data());
  return {begin, begin + count};
}

TEST_F(ReplicasOnGpus, GroupsAndStagesAgreeToTheBitHoweverLongTheirWorkTakes) {
  std::vector<Weights> all;
  std::mutex mutex;
  for (const int stage : {0, 1, 2, 3}) {
    for (const bool late : {false, true}) {
      const auto body = [&](GpuRank& rank, Communicator& between) {
        const auto seed = [&](unsigned of) {
          return late ? std::optional(of + static_cast<unsigned>(rank.device.index)) : std::nullopt;
        };
        Delays of_group(seed(10)), of_counterparts(seed(20)), of_work(seed(30));
        Laggard group(rank.communicator, of_group), counterparts(between, of_counterparts);
        EngineOptions with = options(stage, counterparts);
        with.hide_step = late;
        with.gatherer.poison = late;
        DeviceTraining training(group, rank.device, with, rank.stream.get(), of_work);
        Weights mine = trained(rank, training);
        const std::lock_guard lock(mutex);
        all.push_back(std::move(mine));
      };
      expect_success(run_on_gpus_of_hosts(4, body));
    }
  }
  ASSERT_EQ(all.size(), 32U);
  for (const Weights& other : all) EXPECT_TRUE(other == all.front());
}

// Sums have another order.
TEST_F(ReplicasOnGpus, TrainNearlyAsOneGroupDoes) {
  Weights replicated, flat;
  const auto keep = [](const GpuRank& rank, Weights weights, Weights& into) {
    if (rank.device.index == 0) into = std::move(weights);
  };
  expect_success(run_on_gpus_of_hosts(4, [&](GpuRank& rank, Communicator& between) {
    Delays none({});
    DeviceTraining training(rank.communicator, rank.device, options(3, between), rank.stream.get(), none);
    keep(rank, trained(rank, training), replicated);
  }));
  const auto body = [&](GpuRank& rank) {
    Delays none({});
    DeviceTraining training(rank.communicator, rank.device, {}, rank.stream.get(), none);
    keep(rank, trained(rank, training), flat);
  };
  expect_success(run_on_gpus(4, body));
  for (std::size_t unit = 0; unit < flat.size(); ++unit) {
    const std::size_t count = std::min(replicated[unit].size(), flat[unit].size()) / sizeof(float);
    EXPECT_THAT(numbers_of(replicated[unit], count),
                testing::Pointwise(testing::FloatNear(1e-5F), numbers_of(flat[unit], count)));
  }
}

TEST_F(ReplicasOnGpus, StepWhatOneGroupAloneHasGradientsOf) {
  constexpr std::size_t unit = 1;
  std::vector<Weights> all;
  std::mutex mutex;
  const auto body = [&](GpuRank& rank, Communicator& between) {
    Delays none({});
    DeviceTraining training(rank.communicator, rank.device, options(3, between), rank.stream.get(), none);
    training.takes_part = [&](std::size_t of) { return of != unit || between.rank() == 0; };
    Weights before = training.parameters(rank.device), mine = trained(rank, training);
    require(mine[unit] != before[unit], "left alone");
    const std::lock_guard lock(mutex);
    all.push_back(std::move(mine));
  };
  expect_success(run_on_gpus_of_hosts(4, body));
  for (const Weights& other : all) EXPECT_TRUE(other == all.front());
}

TEST_F(ReplicasOnGpus, AStepThatAllGiveUpIsRepeated) {
  const auto body = [](GpuRank& rank, Communicator& between) {
    Delays none({});
    const auto train = [&](bool failing) {
      DeviceTraining training(rank.communicator, rank.device, options(2, between), rank.stream.get(), none);
      if (failing) {
        training.before_offer = [] { throw std::runtime_error("told to stop"); };
        require(message_of([&] { training.step(0); }) == "told to stop", "another end of the step");
        training.before_offer = [] {};
        training.reset();
      }
      return trained(rank, training);
    };
    require(train(false) == train(true), "not as if the failed step had never been");
  };
  expect_success(run_on_gpus_of_hosts(4, body));
}

TEST_F(ReplicasOnGpus, GroupsThatStepApartAreTold) {
  const auto body = [](GpuRank& rank, Communicator& between) {
    Delays none({});
    DeviceTraining training(rank.communicator, rank.device, options(3, between), rank.stream.get(), none);
    training.forward();
    training.backward(0);
    if (between.rank() == 0) training.engine().step(std::vector<Rule>{toy_rule}, toy_max_norm, rank.stream.get());
    training.forward();
    rethrow_as_text<CommunicatorError>([&] { training.backward(1); });
  };
  expect_each_says(run_on_gpus_of_hosts(4, body), {"gradients of step 1", "gradients of step 0"});
}

TEST_F(ReplicasOnGpus, TakeExactlyWhatWasPlanned) {
  const auto body = [](GpuRank& rank, Communicator& between) {
    Delays none({});
    DeviceTraining training(rank.communicator, rank.device, options(3, between), rank.stream.get(), none);
    const DeviceArena& arena = training.memory().arena();
    training.step(0);
    require(arena.used() == arena.capacity(),
            std::to_string(arena.used()) + " of " + std::to_string(arena.capacity()) + " bytes are used");
  };
  expect_success(run_on_gpus_of_hosts(4, body));
}

}  // namespace
}  // namespace aliquot::test
