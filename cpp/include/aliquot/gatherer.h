/// \file
/// Brings a unit's parameters together from the ranks that own them, and gives the memory back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/schedule.h"
#include "aliquot/shard_store.h"
#include "aliquot/slots.h"
#include "aliquot/streams.h"
#include "aliquot/timeline.h"

namespace aliquot {

/// The two directions in which a model is walked; each has its own trace.
enum class Pass { forward, backward };

/// Where the sharded parameters of a full unit are read.
enum class Landing {
  in_place,  ///< where the shards lie, if the transport maps them side by side; a gather moves nothing
  slots,     ///< copied into slots
};

struct GathererOptions {
  Landing landing = Landing::in_place;  ///< two-sided transports always use slots
  std::size_t slots = 2;                ///< of the ring
  std::size_t ahead_bytes = 0;          ///< how much to gather ahead of its use
  bool poison = false;                  ///< fill slots with NaN on release (debugging); implies Landing::slots
};

struct GatherStatistics {
  std::uint64_t gathers = 0;
  std::uint64_t bytes = 0;  ///< copied from peers
  double seconds = 0;       ///< spent waiting and copying
};

/// Gathers units on their own, whatever peers do, where the transport is one-sided; elsewhere every rank gathers the
/// same units in the same order. Single-threaded.
class Gatherer {
 public:
  Gatherer(ShardStore& store, Communicator& communicator, MemoryResource& memory, GathererOptions options);
  Gatherer(const Gatherer&) = delete;
  Gatherer& operator=(const Gatherer&) = delete;
  ~Gatherer();

  /// The full parameters of `unit`, Layout::numel() elements of its dtype, current until it was released as often as
  /// acquired. `stream` waits until they are there; the host does not, where there is a device.
  /// \param home  may_move unless a graph holds tensors of this unit (see Slots::Home)
  const std::byte* acquire(std::size_t unit, Pass pass, Slots::Home home, Stream stream = {});
  /// `stream` has been given all work that reads the unit.
  void release(std::size_t unit, Stream stream = {});
  /// What the unit's slot holds is not to be used again.
  void forget(std::size_t unit);
  /// Acquires once more what is live already.
  void hold(std::size_t unit);
  /// The other unit that is live where `unit` must land, if any.
  std::optional<std::size_t> in_the_way(std::size_t unit) const;
  /// Gives back all units, after an error.
  void release_all(Stream stream = {});
  /// Marks the end of a pass, so that the next is predicted from its start.
  void end_pass(Pass pass);

  /// `stream` goes on when this rank reads no peer's bytes any more; other streams don't wait.
  void finish_reads(Stream stream);
  /// The same, and the host waits.
  void finish_reads();
  /// Tells peers that this rank's bytes have their next version, which `stream` has been given the writing of. Every
  /// rank publishes the same sequence of versions.
  void publish(Stream stream = {});
  /// The same in pieces, on a device: the next version begins, behind what `stream` has been given; then each unit that
  /// changes is there when its own stream has come to this point.
  void begin_version(Stream stream);
  void publish_unit(std::size_t unit, Stream stream);
  /// Every owner's shard of the present version into `whole`, numel() elements, which may be the unit's own block.
  void fetch(std::size_t unit, Role role, std::byte* whole, Stream stream = {});

  /// The host waits for what is under way; no slot holds anything, and no event was ever recorded.
  void renew();
  /// What `stream` was given so far comes before what the gatherer does next, on a stream of its own.
  void follow(Stream stream);
  /// From here to end_capture() what is given to streams is captured: it is given at once, since a capture that the
  /// caller has spoiled would fail whatever comes later.
  void begin_capture() { capturing_ = true; }
  void end_capture() { capturing_ = false; }
  /// What the slots hold is not to be used again.
  void forget_all() { slots_.forget_all(); }

  /// From here on gathers, and waits for them, are on `timeline`, if there is one.
  void profile(Timeline* timeline);
  /// True if units are copied to slots, which later units overwrite.
  bool uses_slots() const;
  std::size_t slot_bytes() const { return slots_.bytes(); }
  const GatherStatistics& statistics() const { return statistics_; }

 private:
  const std::byte* resident(std::size_t unit) const;
  void fill(std::size_t unit, std::byte* slot);
  void await_filled(std::size_t unit);
  void pull(std::size_t unit, std::byte* slot, Timeline* timeline);
  void move(std::size_t unit, Role role, std::byte* whole, Stream stream, Timeline* timeline);
  void count(std::size_t unit);
  void gather_ahead(std::size_t unit, Pass pass);
  void await_version();
  void make_unit_events();

  ShardStore& store_;
  Communicator& communicator_;
  GathererOptions options_;
  Slots slots_;
  OwnedStream stream_;  ///< of the gathers ahead of their use
  Event published_;
  std::vector<Event> units_published_;  ///< empty before the first begin_version
  Event read_;
  Event followed_;
  Tracer forward_;
  Tracer backward_;
  PeerMemory control_;  ///< per rank: the Signal of its version
  std::uint32_t version_ = 0;
  std::uint32_t seen_version_ = 0;
  GatherStatistics statistics_;
  Timeline* timeline_ = nullptr;
  bool capturing_ = false;
};

}  // namespace aliquot
