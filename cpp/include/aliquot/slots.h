/// \file
/// The fixed memory that full units land in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "aliquot/memory_resource.h"
#include "aliquot/partition.h"
#include "aliquot/streams.h"

namespace aliquot {

/// A ring of equal slots. A unit's first gather gives it a home; it lands there ever after, so what autograd saved in
/// forward is right again when the unit is gathered for backward (docs/design.md, "Slots"). Units that enclose others
/// have slots of their own. The ring grows where more units are live together than it has slots.
class Slots {
 public:
  /// Whether a unit may be given another home: not while a graph waits for its backward, since tensors saved in it
  /// point into the present one.
  enum class Home { may_move, fixed };

  Slots(std::vector<const Layout*> layouts, std::size_t ring, MemoryResource& memory);

  /// Makes `unit` live in its slot and returns the slot's memory. The unit is live until it was released as often as
  /// it was taken. \throws InvalidArgument, naming both units, if another live unit holds a home that is fixed
  std::byte* take(std::size_t unit, Home home);
  /// True if `unit` was live before, or its home could be filled ahead of use without harm to anyone.
  bool free_for(std::size_t unit) const;
  /// The other unit that is live in this unit's home, if any.
  std::optional<std::size_t> in_the_way(std::size_t unit) const;
  void release(std::size_t unit);
  bool live(std::size_t unit) const;
  /// `stream` has been given all work that reads any of them.
  void release_all(Stream stream);

  /// The memory of the unit's home; null before its first take.
  std::byte* home(std::size_t unit) const;
  /// When the home was last filled, and when last given back.
  Event& filled_event(std::size_t unit) { return slots_[*homes_[unit]].filled; }
  Event& released_event(std::size_t unit) { return slots_[*homes_[unit]].released; }
  /// What the home's bytes are: true if they are this unit's as of `epoch`, or will be when `filled_by(unit)` is done.
  bool holds(std::size_t unit, std::uint32_t epoch) const;
  /// \param launch  of the work that fills the home (Communicator::launch)
  void filled(std::size_t unit, std::uint32_t epoch, std::uint64_t launch);
  std::uint64_t filled_by(std::size_t unit) const { return slots_[*homes_[unit]].launch; }
  /// The home's bytes are nobody's.
  void forget(std::size_t unit);
  void forget_all();
  /// Of what was given to streams nothing is under way: no slot holds anything, and no event was ever recorded.
  void renew();
  /// Fills the unit's home with NaN, if other units may land there, so that a use after release cannot pass by luck.
  void poison(std::size_t unit, Stream stream);

  std::size_t bytes() const;
  /// What all slots will take of a DeviceArena, if the ring does not grow.
  std::size_t planned_bytes() const;

 private:
  struct Slot {
    Buffer memory;
    Event filled;
    Event released;
    bool in_ring = false;
    std::optional<std::size_t> content;  ///< unit whose bytes lie here,
    std::uint32_t epoch = 0;             ///< as of this epoch,
    std::uint64_t launch = 0;            ///< brought by this
    std::optional<std::size_t> tenant;   ///< live unit
    std::size_t takes = 0;               ///< how often the tenant was taken and not released
  };

  std::size_t find_home(std::size_t unit);
  std::size_t new_slot(std::size_t bytes, bool in_ring);
  [[noreturn]] void refuse(std::size_t unit, std::size_t tenant) const;
  const std::string& name(std::size_t unit) const { return layouts_[unit]->unit().name; }

  std::vector<const Layout*> layouts_;
  MemoryResource& memory_;
  std::size_t ring_size_;
  std::size_t ring_bytes_ = 0;
  std::size_t ring_count_ = 0;
  std::size_t next_ = 0;
  std::deque<Slot> slots_;  ///< whose events stay where they are
  std::vector<std::optional<std::size_t>> homes_;
};

}  // namespace aliquot
