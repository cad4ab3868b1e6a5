/// \file
/// The Optimizer of a device: every scalar of the step is worked out there, and the host learns of it later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/device_kernels.h"
#include "aliquot/optimizer.h"
#include "aliquot/shard_store.h"
#include "aliquot/streams.h"
#include "aliquot/timeline.h"
#include "device_reducer.h"
#include "device_trust_ratios.h"
#include "host_ring.h"

namespace aliquot {

/// Steps the shards on a device; see Optimizer. The host never waits in a step.
class DeviceOptimizer {
 public:
  /// States of zero, and tables, in `memory`, which outlives the store. \throws OutOfMemory
  DeviceOptimizer(ShardStore& store, Communicator& communicator, MemoryResource& memory, const Grouping& grouping,
                  const Rule& rule);

  /// Parameters are in other groups from here on. States and counts stay. The host waits for the last step.
  void regroup(const Grouping& grouping);

  // A step is these four, in this order. What decide() and update() give to streams is the same every time, and may be
  // replayed.

  /// Sends the hyperparameters.
  void send(std::span<const Rule> rules, Stream stream);
  /// Exchanges the ranks' reports: from here on the device knows by what each parameter is updated, or that all ranks
  /// skip.
  void decide(DeviceReducer& reducer, std::optional<double> max_norm, Stream stream);
  /// Updates what this rank steps of the unit, if it trains.
  /// \param hold  what the update means to the caller's stream, on a timeline
  void update(std::size_t unit, Hold hold, Stream stream);
  /// Asks for the result. Returns the latest that the host knows of, of this step or one before.
  StepResult receive(Stream stream);
  /// From here on each unit's update is on `timeline`, if there is one.
  void profile(Timeline* timeline) { timeline_ = timeline; }
  /// The scalars of the last step given to a stream, on the device.
  const cuda::StepState* state() const { return reinterpret_cast<const cuda::StepState*>(state_.data()); }
  /// What the gradients are multiples of, on the device; 1 at first.
  LossScale* loss_scale() const { return reinterpret_cast<LossScale*>(loss_scale_.data()); }
  /// The host waits for the last step.
  StepCounts counts() const;
  void set_counts(const StepCounts& counts, Stream stream);
  /// The host waits.
  ParamSteps steps(Stream stream) const;
  void set_steps(const ParamSteps& steps, Stream stream);

 private:
  struct Unit {
    Buffer chunks;
    std::size_t chunk_count = 0;
    std::size_t first_param = 0;
  };

  void place(const Grouping& grouping);
  void make_room_for_groups();
  cuda::UnitUpdate update_of(std::size_t unit) const;
  TimedScope time_update(std::size_t unit, Hold hold, Stream stream) const;
  StepResult result_of(const cuda::StepState& state) const;

  ShardStore& store_;
  Communicator& communicator_;
  Rule rule_;
  Device device_;
  MemoryResource& memory_;
  cuda::ReportShape shape_;
  std::vector<Unit> units_;
  std::size_t group_count_ = 0;
  Buffer groups_;  ///< alternatives of the rule, by group
  Buffer group_of_param_;
  Buffer steps_of_param_;
  Buffer scalars_;  ///< ParamScalars of the rule
  Buffer reports_;
  Buffer state_;
  Buffer loss_scale_;
  HostRing sent_;             ///< groups on their way to the device
  HostRing received_;         ///< states on their way from it
  DeviceTrustRatios ratios_;  ///< where the rule is Normed
  Timeline* timeline_ = nullptr;
};

}  // namespace aliquot
