/// \file
/// Where full gradients wait for the owners of their parts: the one-sided half of the reducer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "aliquot/communicator.h"

namespace aliquot {

/// A few buffers per rank that peers read, and for each (rank, unit) a record of what that rank contributes to the
/// present micro-step: an outbox, nothing, or that it gave up. Whoever owns it makes its sums a chore of the
/// communicator, so that they get on while any rank waits. See docs/design.md, "Reducing without a partner".
class Outboxes {
 public:
  /// Collective. `names` are those of the units, for errors.
  Outboxes(Communicator& communicator, std::vector<std::string> names, std::size_t box_floats);

  /// An outbox of box_floats elements for `unit`; waits for one while peers get on. Null if all are held up by ranks
  /// that wait themselves: ranks that take different paths could otherwise wait for each other.
  float* take(std::size_t unit);
  /// The same at the end of the micro-step, from the reserve too: units in index order cannot wait in a circle.
  float* take_in_order(std::size_t unit);
  /// Says that the outbox taken for `unit` is full.
  void publish(std::size_t unit);
  void publish_nothing(std::size_t unit);
  void publish_failure(std::size_t unit);

  /// True once every rank has said what it contributes. \throws CommunicatorError if one gave up.
  bool ready(std::size_t unit) const;
  /// The full gradients of the ranks that have one, in rank order; after ready().
  std::vector<const float*> contributions(std::size_t unit) const;
  /// Says that this rank has read its part of all contributions.
  void took(std::size_t unit);
  void next_micro_step() { ++micro_step_; }

  std::size_t bytes() const { return boxes_.part_bytes; }

 private:
  struct Record;
  static constexpr std::size_t working = 2;  ///< outboxes in use during a pass
  static constexpr std::size_t reserve = 1;  ///< and one more at its end

  Record& record(int rank, std::size_t unit) const;
  float* box(int rank, std::size_t index) const;
  void say(std::size_t unit, std::uint32_t content);
  float* claim(std::size_t unit, std::size_t index);
  std::optional<std::size_t> free_box(std::size_t count) const;
  bool everyone_took(std::size_t unit, std::uint32_t micro_step) const;
  bool held_up(std::size_t index) const;
  /// What a rank that gave up will never sum frees no outbox.
  void require_nobody_gave_up() const;

  struct Use {
    std::size_t unit;
    std::uint32_t micro_step;
  };

  Communicator& communicator_;
  std::vector<std::string> names_;
  std::size_t box_floats_;
  PeerMemory boxes_;
  PeerMemory control_;
  std::uint32_t micro_step_ = 1;
  std::vector<std::optional<Use>> uses_;  ///< what each of this rank's outboxes was last taken for
};

}  // namespace aliquot
