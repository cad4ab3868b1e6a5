// The engine on GPUs: hand-overs between its streams hold however long the work on them takes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "aliquot/engine.h"
#include "device_training.h"
#include "gpu_ranks.h"
#include "laggard.h"
#include "planned_memory.h"
#include "tests/cpp/toy_units.h"

namespace aliquot::test {
namespace {

enum class Way { nccl, nccl_registered, peer, hierarchical };

constexpr const char* name_of(Way way) {
  switch (way) {
    case Way::nccl: return "nccl";
    case Way::nccl_registered: return "nccl_registered";
    case Way::peer: return "peer";
    case Way::hierarchical: return "hierarchical";
  }
  return "";
}

class CudaEngine : public testing::TestWithParam<std::tuple<int, Way>> {
 protected:
  void SetUp() override {
    const int needed = way() == Way::hierarchical ? 4 : 1;
    if (cuda_device_count() < needed) GTEST_SKIP() << "needs " << needed << " CUDA devices";
  }

  static Way way() { return std::get<Way>(GetParam()); }
  static int world_size() { return way() == Way::hierarchical ? 4 : std::min(cuda_device_count(), 2); }
  static GpuTransport transport() {
    switch (way()) {
      case Way::peer: return GpuTransport::peer;
      case Way::hierarchical: return GpuTransport::hierarchical;
      default: return GpuTransport::nccl;
    }
  }
  static EngineOptions options() {
    EngineOptions options;
    options.stage = Stage(std::get<int>(GetParam()));
    options.register_memory = way() == Way::nccl_registered;
    options.gatherer.ahead_bytes = 1 << 20;
    return options;
  }

  static std::vector<std::vector<std::byte>> train(GpuRank& rank, const EngineOptions& options,
                                                   std::optional<unsigned> seed, const Rule& rule = toy_rule) {
    Delays of_collectives(seed), of_work(seed);
    Laggard communicator(rank.communicator, of_collectives);
    DeviceTraining training(communicator, rank.device, options, rank.stream.get(), of_work, rule);
    for (std::size_t step = 0; step < DeviceTraining::steps; ++step) training.step(step);
    return training.parameters(rank.device);
  }
};
INSTANTIATE_TEST_SUITE_P(Stages, CudaEngine,
                         testing::Combine(testing::Values(0, 1, 2, 3), testing::Values(Way::nccl, Way::nccl_registered,
                                                                                       Way::peer, Way::hierarchical)),
                         [](const auto& info) {
                           return "stage" + std::to_string(std::get<int>(info.param)) + "_" +
                                  name_of(std::get<Way>(info.param));
                         });

TEST_P(CudaEngine, GivesTheSameBitsHoweverLongItsWorkTakes) {
  const auto body = [](GpuRank& rank) {
    const auto expected = train(rank, options(), {});
    EngineOptions poisoned = options();
    poisoned.gatherer.poison = true;
    for (const unsigned run : {1U, 2U, 3U}) {
      const unsigned seed = 10 * run + static_cast<unsigned>(rank.communicator.rank());
      require(train(rank, poisoned, seed) == expected, "run " + std::to_string(run) + ": other bits");
    }
  };
  expect_success(run_on_gpus(world_size(), body, patience, transport()));
}

/// Gradients from an allocator that hands out again what it got back, as torch's does: what still reads them is wrong.
TransientMemory recycled(GpuRank& rank) {
  struct Pool {
    std::unique_ptr<MemoryResource> memory;
    std::map<std::size_t, std::vector<std::byte*>> free{};
    ~Pool() {
      for (const auto& [bytes, pieces] : free) {
        for (std::byte* const piece : pieces) memory->deallocate(piece, bytes, {});
      }
    }
  };
  const auto pool = std::shared_ptr<Pool>(new Pool{memory_for(rank)});
  return [pool](std::size_t bytes, Stream stream) {
    auto& free = pool->free[bytes];
    if (free.empty()) free.push_back(static_cast<std::byte*>(pool->memory->allocate(bytes, 256, stream)));
    std::byte* const data = free.back();
    free.pop_back();
    const auto give_back = [pool, bytes, stream](std::byte* back) {
      fill_async(back, 0xFF, bytes, stream);
      pool->free[bytes].push_back(back);
    };
    return std::shared_ptr<std::byte>(data, give_back);
  };
}

TEST_P(CudaEngine, GivesTheSameBitsWhereUpdatesPassBesideTheForward) {
  const auto body = [](GpuRank& rank) {
    EngineOptions hiding = options();
    hiding.hide_step = true;
    hiding.gatherer.poison = true;
    hiding.store.transient = recycled(rank);
    const auto seed = static_cast<unsigned>(rank.communicator.rank());
    for (const Rule& rule : {Rule(toy_rule), Rule(Lamb{.lr = 1e-2, .weight_decay = 0.1}), Rule(AdamW8bit{toy_rule})}) {
      const auto expected = train(rank, options(), {}, rule);
      for (const unsigned run : {10U, 20U, 30U}) {
        require(train(rank, hiding, run + seed, rule) == expected, std::string(name_of(rule)) + ": other bits");
      }
    }
  };
  expect_success(run_on_gpus(world_size(), body, patience, transport()));
}

TEST_P(CudaEngine, GivesTheBitsOfStage0WithStatesInBlocks) {
  const auto body = [](GpuRank& rank) {
    EngineOptions whole = options();
    whole.stage = Stage(0);
    const Rule rule = AdamW8bit{toy_rule};
    require(train(rank, options(), {}, rule) == train(rank, whole, {}, rule), "other bits");
    require(train(rank, options(), {}, rule) != train(rank, options(), {}), "states of fp32");
  };
  expect_success(run_on_gpus(world_size(), body, patience, transport()));
}

TEST_P(CudaEngine, TakesExactlyWhatWasPlanned) {
  const auto body = [](GpuRank& rank) {
    Delays none({});
    DeviceTraining training(rank.communicator, rank.device, options(), rank.stream.get(), none);
    const DeviceArena& arena = training.memory().arena();
    training.step(0);
    require(arena.used() == arena.capacity(),
            std::to_string(arena.used()) + " of " + std::to_string(arena.capacity()) + " bytes are used");
  };
  expect_success(run_on_gpus(world_size(), body, patience, transport()));
}

TEST_P(CudaEngine, MeasuresAndScalesSingleParameters) {
  const auto body = [](GpuRank& rank) {
    Delays none({});
    DeviceTraining training(rank.communicator, rank.device, options(), rank.stream.get(), none);
    Engine& engine = training.engine();
    const Stream stream = rank.stream.get();
    training.forward();
    training.backward(3);
    const auto before = engine.square_sums(stream);
    double sum = 0;
    for (const std::vector<double>& of_unit : before) {
      for (const double square : of_unit) sum += square;
    }
    const double norm = engine.gradient_report(stream).norm;
    require(std::abs(std::sqrt(sum) - norm) <= 1e-12 * norm, "the sum is not the norm's");
    constexpr std::size_t embed = 1, table = 2;
    require(before[embed][0] > 0 && before[table][0] == 0, "a parameter's sum");
    engine.scale_gradient(embed, 0, 0.5F, stream);
    engine.scale_gradient(table, 0, 0.5F, stream);
    auto after = engine.square_sums(stream);
    require(after[embed][0] == before[embed][0] / 4, "not scaled");
    require(engine.gradient_report(stream).norm < norm, "the norm of before");
    after[embed][0] = before[embed][0];
    require(after == before, "others were scaled");
  };
  expect_success(run_on_gpus(world_size(), body, patience, transport()));
}

TEST_P(CudaEngine, RefusesToUnfreezeWhatWasNotPlanned) {
  const auto body = [](GpuRank& rank) {
    Delays none({});
    DeviceTraining training(rank.communicator, rank.device, options(), rank.stream.get(), none);
    const std::string text = error_of<InvalidArgument>([&] { training.engine().unfreeze(2); });
    require(text.find("let it train then") != std::string::npos, text);
    training.step(0);
  };
  expect_success(run_on_gpus(world_size(), body, patience, transport()));
}

std::vector<float> numbers_of(const std::vector<std::vector<std::byte>>& units) {
  std::vector<float> numbers;
  for (const std::vector<std::byte>& unit : units) {
    const auto* const begin = reinterpret_cast<const float*>(unit.data());
    numbers.insert(numbers.end(), begin, begin + unit.size() / sizeof(float));
  }
  return numbers;
}

// Sums have another order.
TEST(CudaEngineOfHosts, TrainsNearlyAsOnOneHost) {
  if (cuda_device_count() < 4) GTEST_SKIP() << "needs 4 CUDA devices";
  const auto weights_on = [](GpuTransport transport) {
    std::vector<std::vector<std::byte>> weights;
    const auto body = [&](GpuRank& rank) {
      Delays none({});
      DeviceTraining training(rank.communicator, rank.device, {}, rank.stream.get(), none);
      for (std::size_t step = 0; step < DeviceTraining::steps; ++step) training.step(step);
      auto mine = training.parameters(rank.device);
      if (rank.communicator.rank() == 0) weights = std::move(mine);
    };
    expect_success(run_on_gpus(4, body, patience, transport));
    return numbers_of(weights);
  };
  EXPECT_THAT(weights_on(GpuTransport::hierarchical),
              testing::Pointwise(testing::FloatNear(1e-5F), weights_on(GpuTransport::nccl)));
}

TEST(CudaEngineOnPeer, RefusesMemoryThatPeersCannotMap) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device";
  const auto body = [](GpuRank& rank) {
    const auto memory = device_memory(rank.device);
    const std::string text = error_of<InvalidArgument>([&] { Engine(toy_units(), rank.communicator, *memory, {}); });
    require(text.find("give it that of planned_memory()") != std::string::npos, text);
  };
  expect_success(run_on_gpus(1, body, patience, GpuTransport::peer));
}

}  // namespace
}  // namespace aliquot::test
