/// \file
/// Trains toy_units() on an engine of a GPU.
#pragma once

#include <cstddef>
#include <functional>
#include <mutex>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "aliquot/engine.h"
#include "gpu_ranks.h"
#include "planned_memory.h"
#include "tests/cpp/toy_training.h"
#include "tests/cuda/busy.h"

namespace aliquot::test {

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

/// toy_units() on a device. Forward leaves what it read in `activations`, so that every gather shows in the gradients.
class DeviceTraining {
 public:
  static constexpr std::size_t steps = 5;

  DeviceTraining(Communicator& communicator, Device device, const EngineOptions& options, Stream stream, Delays& delays,
                 const Rule& rule = toy_rule)
      : memory_(toy_units(), communicator, options, device), engine_(toy_units(), communicator, memory_, options),
        rank_(static_cast<std::size_t>(rank_in_world(communicator, options.replicas))), stream_(stream),
        delays_(delays), rules_{rule} {
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
    engine_.set_groups(std::move(grouping), rule);
  }

  // The host doesn't wait in any of these.

  /// One of them leaves a unit out, behind one that had it, and ends in two updates.
  void step(std::size_t number) {
    walk_ = number == 2 ? std::vector<std::size_t>{root, 1, 2, 3} : std::vector<std::size_t>{root, 1, 2, 3, 5};
    forward();
    backward(number);
    engine_.step(rules_, toy_max_norm, stream_);
    if (number == 2) engine_.step(rules_, toy_max_norm, stream_);
    engine_.clear_gradients(stream_);
  }

  void forward() {
    for (const std::size_t unit : walk_) forward(unit);
    engine_.post_forward(root, stream_);
    engine_.finish_forward();
  }

  void backward(std::size_t step) {
    for (std::size_t i = walk_.size(); i-- > 0;) backward(walk_[i], step);
    engine_.finish_backward(std::exchange(left_, {}), stream_);
  }

  /// After an exception in one of them.
  void reset() {
    left_.clear();
    engine_.reset(stream_);
  }

  /// Called before the gradients of a unit are given away.
  std::function<void()> before_offer = [] {};
  /// Whether this rank takes part in the unit's gradient.
  std::function<bool(std::size_t unit)> takes_part = [](std::size_t) { return true; };

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
  Engine& engine() { return engine_; }

 private:
  static int rank_in_world(const Communicator& group, const Communicator* replicas) {
    return group.rank() + (replicas == nullptr ? 0 : replicas->rank() * group.world_size());
  }

  static constexpr std::size_t root = 0;  ///< it encloses the others

  std::size_t params(std::size_t unit) const { return engine_.layout(unit).unit().params.size(); }
  std::size_t numel(std::size_t unit) const { return engine_.layout(unit).numel(); }

  void forward(std::size_t unit) {
    const auto* full = static_cast<const float*>(engine_.pre_forward(unit, stream_));
    fill_async(activations_[unit].data(), 0, activations_[unit].span().size(), stream_);
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
      const bool has = takes_part(unit) && toy_has_gradient(rank_, step, unit, p);
      pointers.push_back(has ? gradient + engine_.layout(unit).param(p).begin : nullptr);
    }
    before_offer();
    if (!engine_.post_backward(unit, pointers, stream_)) left_.emplace_back(unit, pointers);
  }

  PlannedMemory memory_;
  Engine engine_;
  std::size_t rank_;
  Stream stream_;
  Delays& delays_;
  std::vector<Rule> rules_;
  std::vector<std::size_t> walk_ = {root, 1, 2, 3, 5};
  Left left_;
  std::vector<GpuBytes> activations_, gradients_;  ///< of each unit
  std::vector<GpuBytes> noise_[steps];
};

}  // namespace aliquot::test
