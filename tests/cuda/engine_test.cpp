// The engine on GPUs: hand-overs between its streams hold however long the work on them takes.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "aliquot/engine.h"
#include "gpu_ranks.h"
#include "planned_memory.h"
#include "tests/cpp/toy_training.h"
#include "tests/cpp/two_sided.h"
#include "tests/cuda/busy.h"

namespace aliquot::test {
namespace {

constexpr std::size_t steps = 5;

/// Busy kernels of random lengths, up to half a millisecond; none without a seed.
class Delays {
 public:
  explicit Delays(std::optional<unsigned> seed) : random_(seed.value_or(0)), on_(seed.has_value()) {}
  void before_what_is_next_on(Stream stream) {
    const std::lock_guard lock(mutex_);
    if (on_) linger(std::uniform_int_distribution<std::uint64_t>(0, 1'000'000)(random_), stream);
  }

 private:
  std::mutex mutex_;
  std::mt19937 random_;
  bool on_;
};

/// A communicator whose collectives begin late.
class Laggard final : public TwoSided {
 public:
  Laggard(Communicator& inner, Delays& delays) : TwoSided(inner), inner_(inner), delays_(delays) {}

  std::string_view name() const noexcept override { return inner_.name(); }
  Communicator& host() noexcept override { return inner_.host(); }
  void all_gather(const Tag& tag, std::span<const std::byte> part, std::byte* whole, Stream stream) override {
    delays_.before_what_is_next_on(stream);
    inner_.all_gather(tag, part, whole, stream);
  }
  void exchange(const Tag& tag, const std::byte* input, std::byte* output, std::size_t piece_bytes,
                Stream stream) override {
    delays_.before_what_is_next_on(stream);
    inner_.exchange(tag, input, output, piece_bytes, stream);
  }
  std::shared_ptr<void> register_memory(std::span<std::byte> memory) override { return inner_.register_memory(memory); }
  std::uint64_t launch(std::function<void()> work) override { return inner_.launch(std::move(work)); }
  void await(std::uint64_t launch) override { inner_.await(launch); }
  bool maps_peers() const noexcept override { return inner_.maps_peers(); }
  std::unique_ptr<MemoryResource> registrable_memory() override { return inner_.registrable_memory(); }
  const std::byte* peer(int rank, const std::byte* own) const override { return inner_.peer(rank, own); }
  void meet(const Tag& tag, int channel, Stream stream) override {
    delays_.before_what_is_next_on(stream);
    inner_.meet(tag, channel, stream);
  }

 private:
  Communicator& inner_;
  Delays& delays_;
};

/// toy_units() on a device. Forward leaves what it read in `activations`, so that every gather shows in the gradients.
class DeviceTraining {
 public:
  DeviceTraining(Communicator& communicator, Device device, const EngineOptions& options, Stream stream, Delays& delays)
      : memory_(toy_units(), communicator, options, device), engine_(toy_units(), communicator, memory_, options),
        rank_(static_cast<std::size_t>(communicator.rank())), stream_(stream), delays_(delays) {
    Grouping grouping;
    engine_.begin_write();
    for (std::size_t unit = 0; unit < engine_.unit_count(); ++unit) {
      grouping.emplace_back(params(unit), 0);
      for (std::size_t p = 0; p < params(unit); ++p) engine_.write(unit, p, toy_initial(unit, p).data(), stream_);
      const std::size_t bytes = numel(unit) * sizeof(float);
      activations_.emplace_back(device, bytes);
      gradients_.emplace_back(device, bytes);
      for (std::size_t step = 0; step < steps; ++step) {
        const std::vector<float> noise = numbers({rank_, step, unit}, numel(unit));
        noise_[step].emplace_back(device, std::as_bytes(std::span(noise)), stream_);
      }
    }
    engine_.end_write(stream_);
    engine_.set_groups(std::move(grouping));
  }

  /// The host doesn't wait.
  void step(std::size_t number) {
    for (const std::size_t unit : walk) forward(unit);
    engine_.post_forward(root, stream_);
    engine_.finish_forward();
    for (std::size_t i = walk.size(); i-- > 0;) backward(walk[i], number);
    engine_.finish_backward(std::exchange(left_, {}), stream_);
    engine_.step(toy_groups, toy_max_norm, stream_);
    engine_.clear_gradients(stream_);
  }

  std::vector<std::vector<std::byte>> parameters(Device device) {
    std::vector<std::vector<std::byte>> all;
    for (std::size_t unit = 0; unit < engine_.unit_count(); ++unit) {
      const GpuBytes whole(device, numel(unit) * sizeof(float));
      engine_.read(unit, whole.data(), stream_);
      all.push_back(whole.values(stream_));
    }
    return all;
  }

  const PlannedMemory& memory() const { return memory_; }

 private:
  static constexpr std::size_t root = 0;  ///< it encloses the others
  inline static const std::vector<std::size_t> walk = {root, 1, 2, 3, 5};

  std::size_t params(std::size_t unit) const { return engine_.layout(unit).unit().params.size(); }
  std::size_t numel(std::size_t unit) const { return engine_.layout(unit).numel(); }

  void forward(std::size_t unit) {
    const auto* full = static_cast<const float*>(engine_.pre_forward(unit, stream_));
    delays_.before_what_is_next_on(stream_);
    axpy(0.5F, full, activations_[unit].floats(), numel(unit), stream_);
    engine_.expect_backward(unit);
    if (unit != root) engine_.post_forward(unit, stream_);
  }

  void backward(std::size_t unit, std::size_t step) {
    const auto* full = static_cast<const float*>(engine_.pre_backward(unit, stream_));
    delays_.before_what_is_next_on(stream_);
    float* const gradient = gradients_[unit].floats();
    copy_async(gradient, noise_[step][unit].data(), numel(unit) * sizeof(float), stream_);
    axpy(0.125F, full, gradient, numel(unit), stream_);
    axpy(0.125F, activations_[unit].floats(), gradient, numel(unit), stream_);
    Gradients pointers;
    for (std::size_t p = 0; p < params(unit) && engine_.layout(unit).unit().trainable; ++p) {
      const bool has = toy_has_gradient(rank_, step, unit, p);
      pointers.push_back(has ? gradient + engine_.layout(unit).param(p).begin : nullptr);
    }
    if (!engine_.post_backward(unit, pointers, stream_)) left_.emplace_back(unit, pointers);
  }

  PlannedMemory memory_;
  Engine engine_;
  std::size_t rank_;
  Stream stream_;
  Delays& delays_;
  Left left_;
  std::vector<GpuBytes> activations_, gradients_;  ///< of each unit
  std::vector<GpuBytes> noise_[steps];
};

enum class Way { nccl, nccl_registered, peer };

constexpr const char* name_of(Way way) {
  return way == Way::nccl ? "nccl" : way == Way::peer ? "peer" : "nccl_registered";
}

class CudaEngine : public testing::TestWithParam<std::tuple<int, Way>> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device";
  }

  static int world_size() { return std::min(cuda_device_count(), 2); }
  static GpuTransport transport() {
    return std::get<Way>(GetParam()) == Way::peer ? GpuTransport::peer : GpuTransport::nccl;
  }
  static EngineOptions options() {
    EngineOptions options;
    options.stage = Stage(std::get<int>(GetParam()));
    options.register_memory = std::get<Way>(GetParam()) == Way::nccl_registered;
    options.gatherer.ahead_bytes = 1 << 20;
    return options;
  }

  static std::vector<std::vector<std::byte>> train(GpuRank& rank, const EngineOptions& options,
                                                   std::optional<unsigned> seed) {
    Delays of_collectives(seed), of_work(seed);
    Laggard communicator(rank.communicator, of_collectives);
    DeviceTraining training(communicator, rank.device, options, rank.stream.get(), of_work);
    for (std::size_t step = 0; step < steps; ++step) training.step(step);
    return training.parameters(rank.device);
  }
};
INSTANTIATE_TEST_SUITE_P(Stages, CudaEngine,
                         testing::Combine(testing::Values(0, 1, 2, 3),
                                          testing::Values(Way::nccl, Way::nccl_registered, Way::peer)),
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
