/// \file
/// Waiting for other ranks, without ever waiting in vain.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "aliquot/communicator.h"
#include "process.h"
#include "shared_world.h"

namespace aliquot {

/// Called at this interval by a rank that waits; see set_interrupt_check.
std::function<void()>& interrupt_check();
inline constexpr std::chrono::milliseconds interrupt_interval(100);

/// Completes "rank 1 waited for ..."; made only when an error needs it.
using Sentence = std::function<std::string()>;

/// One rank's waits. They end when what they wait for has come, or with an error: a rank was killed; a rank that must
/// still post has left; all ranks wait for each other; someone aborted; the deadline has passed. Whichever comes first
/// ends the world for all ranks.
class Waiter {
 public:
  /// `peers` has an entry per rank, empty for those that are threads of this process (they can't end unsaid).
  Waiter(SharedWorld world, int rank, std::vector<std::optional<Process>> peers, std::chrono::milliseconds timeout,
         RankNames names);

  /// Signals in `memory` tell whom a wait is for.
  void know(const PeerMemory& memory);
  void wait(const std::function<bool()>& ready, const Sentence& what);
  /// Throws PeerLost if `peer` turns out to be dying: for errors that would be its death's first sign.
  void rule_out_death(int peer, const Sentence& what);
  /// Throws what has ended the world, if anything has.
  void require_intact() const { world_.failure().raise(); }
  /// The same, after a look whether a rank was killed. Safe from any thread.
  void look();
  /// Ends the world with an error: PeerLost where `named_lost` is a rank, and not -1.
  void fail(int named_lost, std::string_view text) noexcept;

 private:
  using Clock = std::chrono::steady_clock;
  enum class Presence { here, left, killed };
  struct Region {
    std::weak_ptr<std::byte> base;
    std::size_t part_bytes;
  };

  void sleep(const std::function<bool()>& ready, const Sentence& what);
  std::vector<Presence> presences() const;
  [[noreturn]] void lose(int lost, const char* how, const Sentence& what);
  bool ready_or_lost(const std::function<bool()>& ready, const Sentence& what);
  /// Throws if no rank can go on. `rings`: of the doorbell, before this one asked in vain for signals.
  void require_movement(std::uint32_t rings, const Sentence& what);
  bool nobody_moves(std::uint32_t rings) const;
  /// What each waits for, every different thing once.
  std::string all_waits() const;
  void pass_deadline(const std::function<bool()>& ready, const Sentence& what);
  void check_interrupt(const Sentence& what);
  Presence presence(int rank) const;
  /// The ranks whose signals keep `ready()` false.
  std::vector<int> owners(const std::vector<const Signal*>& signals) const;
  /// "rank 1"
  std::string named(int rank) const;
  std::string named_with_pid(int rank) const;

  SharedWorld world_;
  int rank_;
  std::vector<std::optional<Process>> peers_;
  std::chrono::milliseconds timeout_;
  RankNames names_;
  std::vector<Region> regions_;
};

}  // namespace aliquot
