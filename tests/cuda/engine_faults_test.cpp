// The engine on GPUs where a step goes wrong: what can be repeated gives the same bits, the rest is an error.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "aliquot/engine.h"
#include "aliquot/error.h"
#include "device_training.h"
#include "gpu_ranks.h"
#include "tests/cuda/pooled_memory.h"

namespace aliquot::test {
namespace {

/// Where gradients come from in a backward; there is none left when the test says so.
class ScarceMemory {
 public:
  explicit ScarceMemory(Device device) : memory_(pooled_memory(device)) {}

  TransientMemory source() {
    return [this](std::size_t bytes, Stream stream) {
      if (std::exchange(refuses_, false)) throw OutOfMemory("no room for gradients");
      const auto give_back = [memory = memory_, bytes, stream](std::byte* data) {
        memory->deallocate(data, bytes, stream);
      };
      return std::shared_ptr<std::byte>(static_cast<std::byte*>(memory_->allocate(bytes, 256, stream)), give_back);
    };
  }
  void refuse_once() { refuses_ = true; }

 private:
  std::shared_ptr<MemoryResource> memory_;
  bool refuses_ = false;
};

struct Trainee {
  GpuRank& rank;
  ScarceMemory& memory;
  DeviceTraining& training;
};
/// What comes before a step, on each rank.
using Disturbance = std::function<void(const Trainee&, std::size_t step)>;

void try_and_reset(const Trainee& trainee, std::size_t step, const std::string& error) {
  const std::string message = message_of([&] { trainee.training.step(step); });
  require(message == error, "another end of the step: '" + message + "'");
  trainee.training.before_offer = [] {};
  trainee.training.reset();
}

/// Rank 0 finds no memory for the first gradient that it gives away.
void fail_on_rank_0(const Trainee& trainee, std::size_t step) {
  if (trainee.rank.communicator.rank() != 0) return;
  trainee.memory.refuse_once();
  try_and_reset(trainee, step, "no room for gradients");
}

/// The other ranks come as far as rank 0 does.
void fail_on_all_ranks(const Trainee& trainee, std::size_t step) {
  fail_on_rank_0(trainee, step);
  if (trainee.rank.communicator.rank() == 0) return;
  trainee.training.before_offer = [] { throw std::runtime_error("told to stop"); };
  try_and_reset(trainee, step, "told to stop");
}

class RepeatedStep : public testing::TestWithParam<std::tuple<int, GpuTransport>> {
 protected:
  void SetUp() override {
    const int needed = transport() == GpuTransport::hierarchical ? 4 : 1;
    if (cuda_device_count() < needed) GTEST_SKIP() << "needs " << needed << " CUDA devices";
  }
  static GpuTransport transport() { return std::get<GpuTransport>(GetParam()); }

  static std::vector<std::vector<std::byte>> train(GpuRank& rank, const Disturbance& disturb) {
    ScarceMemory memory(rank.device);
    EngineOptions options;
    options.stage = Stage(std::get<int>(GetParam()));
    options.store.transient = memory.source();
    Delays none({});
    DeviceTraining training(rank.communicator, rank.device, options, rank.stream.get(), none);
    for (std::size_t step = 0; step < 2; ++step) {
      disturb({rank, memory, training}, step);
      training.step(step);
    }
    return training.parameters(rank.device);
  }

  /// Whichever step `failure` comes before.
  static void expect_the_same_bits_after(const Disturbance& failure) {
    const auto body = [&](GpuRank& rank) {
      const auto expected = train(rank, [](const Trainee&, std::size_t) {});
      for (const std::size_t failing : {std::size_t{0}, std::size_t{1}}) {
        const auto got = train(rank, [&](const Trainee& trainee, std::size_t step) {
          if (step == failing) failure(trainee, step);
        });
        require(got == expected, "other bits after a failure in step " + std::to_string(failing));
      }
    };
    const int world_size = transport() == GpuTransport::hierarchical ? 4 : std::min(cuda_device_count(), 2);
    expect_success(run_on_gpus(world_size, body, patience, transport()));
  }
};
std::string name_of_case(const testing::TestParamInfo<RepeatedStep::ParamType>& info) {
  return "stage" + std::to_string(std::get<int>(info.param)) + "_" + name_of(std::get<GpuTransport>(info.param));
}
INSTANTIATE_TEST_SUITE_P(ShardedGradients, RepeatedStep,
                         testing::Combine(testing::Values(2, 3), testing::Values(GpuTransport::nccl, GpuTransport::peer,
                                                                                 GpuTransport::hierarchical)),
                         name_of_case);

TEST_P(RepeatedStep, GivesTheSameBitsWhereAllRanksFailedBeforeTheirFirstReduction) {
  expect_the_same_bits_after(fail_on_all_ranks);
}

using StepRepeatedAlone = RepeatedStep;
INSTANTIATE_TEST_SUITE_P(ShardedGradients, StepRepeatedAlone,
                         testing::Combine(testing::Values(2, 3), testing::Values(GpuTransport::peer)), name_of_case);

// The others' reductions wait for this rank's on the device.
TEST_P(StepRepeatedAlone, GivesTheSameBitsWhereTheRankHadReducedNothing) { expect_the_same_bits_after(fail_on_rank_0); }

TEST(TwoModels, ReducedInDifferentOrdersAreAnErrorOnBothRanks) {
  if (cuda_device_count() < 2) GTEST_SKIP() << "needs 2 GPUs, there are " << cuda_device_count();
  const auto body = [](GpuRank& rank) {
    Delays none({});
    DeviceTraining one(rank.communicator, rank.device, {}, rank.stream.get(), none);
    DeviceTraining other(rank.communicator, rank.device, {}, rank.stream.get(), none);
    one.forward();
    other.forward();
    const bool in_turn = rank.communicator.rank() == 0;
    rethrow_as_text<CommunicatorError>([&] {
      (in_turn ? one : other).backward(0);
      (in_turn ? other : one).backward(0);
      await_error(rank);
    });
  };
  expect_each_says(run_on_gpus(2, body, patience, GpuTransport::peer),
                   {"ranks disagree", R"(rank 0 calls meet "reduce" of unit "head")",
                    R"(rank 1 calls meet "reduce, model 2" of unit "head")"});
}

}  // namespace
}  // namespace aliquot::test
