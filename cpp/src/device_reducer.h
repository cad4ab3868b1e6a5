/// \file
/// The Reducer's work on a device: docs/design.md, "Hand-overs between streams".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/device_kernels.h"
#include "aliquot/reducer.h"
#include "aliquot/shard_store.h"
#include "aliquot/streams.h"
#include "aliquot/timeline.h"
#include "reduce_order.h"

namespace aliquot {

/// Full gradients are packed into an outbox on the caller's stream; on a stream of its own each rank gets its piece of
/// all outboxes, or reads it where peers map them, and adds them in rank order. Every unit that trains is reduced once
/// in a micro-step, also where no rank has a gradient, so that nothing need be agreed on. The host never waits. Its
/// report says on the device what gradient_report.h says on the host.
class DeviceReducer {
 public:
  /// \param replicas  null, or a transport of GPUs between those that hold the same shards (EngineOptions::replicas)
  DeviceReducer(ShardStore& store, Communicator& communicator, MemoryResource& memory, const Communicator* replicas);
  /// The host waits for what is under way.
  ~DeviceReducer();

  /// False, and nothing done, if it is not the unit's turn: keep the gradients and give them to finish().
  bool offer(std::size_t unit, const Gradients& gradients, Stream stream);
  /// Ends the micro-step; from here on `stream` finds the sums in the store.
  void finish(const Left& left, Stream stream);
  /// Gives up every gradient since clear().
  void abandon(Stream stream);
  void clear(Stream stream);
  void clear(std::size_t unit, std::size_t param, Stream stream);
  /// See Reducer.
  void restore(std::size_t unit, const std::vector<bool>& present, Stream stream);
  void scale_all(float factor, Stream stream);
  void scale(std::size_t unit, std::size_t param, float factor, Stream stream);
  /// See Reducer. The host waits.
  GradStatistics measure(std::size_t unit, Range range, Stream stream);
  /// Call when somebody may have written to gradients in the store.
  void invalidate_statistics() { stale_ = true; }

  /// True if the parameter had a gradient on this rank since clear().
  bool present(std::size_t unit, std::size_t param) const { return units_.at(unit).present.at(param); }
  bool empty(std::size_t unit) const { return units_.at(unit).empty; }

  /// See Reducer. Every unit that trains is reduced in every micro-step.
  bool unaveraged(std::size_t unit) const { return store_.holds(unit, Role::grad); }
  /// See Reducer. await_sums() comes behind.
  void average(std::size_t unit, Communicator& replicas, const Tag& tag);
  void note_present(std::size_t unit, std::size_t param, Stream stream);

  const cuda::ReportShape& report_shape() const { return shape_; }
  /// This rank's report, on the device, current on `stream`.
  std::span<const std::byte> report(Stream stream);

  /// From here to end_capture() what is given to streams is captured (see Gatherer). \throws InvalidArgument from what
  /// adds to a gradient that was there before: it may lie elsewhere in a replay
  void begin_capture();
  void end_capture();
  /// The host waits for what is under way; no event was ever recorded.
  void renew();
  /// What `stream` was given so far comes before what the reducer does next, on a stream of its own.
  void follow(Stream stream);
  /// What the reducer was given so far comes before what `stream` is given next.
  void await_sums(Stream stream);

  /// From here on what it does is on `timeline`, if there is one.
  void profile(Timeline* timeline);

  /// What one with this store takes of a DeviceArena.
  static std::size_t planned_bytes(const ShardStore& store, const Communicator& communicator,
                                   const Communicator* replicas);

  std::size_t outbox_bytes() const {
    return outboxes_[0].memory.bytes() + outboxes_[1].memory.bytes() + inbox_.bytes();
  }
  const ReduceStatistics& reduce_statistics() const { return statistics_; }

 private:
  struct Unit {
    std::size_t first_param = 0;
    bool offered = false;       ///< in this micro-step
    bool empty = true;          ///< nothing was reduced since clear()
    bool of_before = false;     ///< something was when the capture began that is under way
    std::vector<bool> present;  ///< per parameter, on this rank
  };
  struct Outbox {
    Buffer memory;
    Event packed;
    Event sent;
    std::uint64_t launch = 0;  ///< of the work that records `sent`: nobody reads the memory any more
  };

  /// What a launched reduction is of.
  struct Sum {
    std::size_t unit;
    std::byte* result;
    Accumulate accumulate;
    Timeline* timeline;
  };

  void take(std::size_t unit, const Gradients& gradients, Stream stream);
  void pack(std::size_t unit, const Gradients& gradients, Outbox& outbox, Stream stream);
  void send(std::size_t unit, Outbox& outbox);
  void reduce_by_exchange(const Sum& sum, Outbox& outbox);
  void reduce_by_scatter(const Sum& sum, Outbox& outbox);
  void reduce_from_peers(const Sum& sum, Outbox& outbox, Outbox& before);
  void add(const Sum& sum, std::span<const void* const> parts, DType dtype);
  void measure(Stream stream);
  void scale_bytes(std::size_t unit, std::span<std::byte> gradients, Stream stream) const;
  cuda::DeviceStatistics* statistics_of(std::size_t unit) const;
  std::uint8_t* present_of(std::size_t unit) const;

  ShardStore& store_;
  Communicator& communicator_;
  Device device_;
  std::vector<Unit> units_;
  ReduceOrder order_;
  std::string operation_;  ///< of its tags
  cuda::ReportShape shape_;
  OwnedStream stream_;
  std::array<Outbox, 2> outboxes_;
  std::size_t next_outbox_ = 0;
  bool stale_ = false;  ///< the statistics are not those of the store
  Buffer inbox_;
  Buffer workspace_;
  Buffer report_;
  Buffer factor_;
  Event reduced_;
  Event followed_;
  ReduceStatistics statistics_;
  Timeline* timeline_ = nullptr;
  bool capturing_ = false;
};

}  // namespace aliquot
