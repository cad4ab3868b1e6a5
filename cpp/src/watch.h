/// \file
/// Watches over ranks whose calls don't wait for each other on the host.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "aliquot/communicator.h"
#include "call_log.h"

namespace aliquot {

/// For a transport that only hands collectives to a device, where ranks that disagree would wait for each other for
/// ever: each rank says what it calls, and someone beside it (a thread that may look as often as it likes) compares.
class Watch {
 public:
  /// Collective over `control`, a one-sided communicator of the same ranks, which must outlive this object and whose
  /// timeout is how long a rank may be behind the others.
  explicit Watch(Communicator& control);

  /// Says that this rank makes its next call, before it does. Never waits. One thread at a time.
  void say(std::string_view collective, const Tag& tag, std::uint64_t size, int root = -1) noexcept;
  /// Says that this rank makes no more calls: peers that need one from it are told PeerLost.
  void leave() noexcept;

  /// Looks once; never waits. Safe from any thread.
  /// \throws CommunicatorError if a peer made other calls than this rank (names both calls), if one has been behind for
  /// longer than the timeout, or if a rank aborted; PeerLost if one was killed, or left while a call needs it.
  void look();

 private:
  using Clock = std::chrono::steady_clock;
  struct Part {
    CallLog log;
    Signal left;
  };
  struct Peer {
    std::uint64_t agreed = 0;  ///< calls that were compared
    std::uint64_t seen = 0;    ///< calls that it had made when it was looked at last
    Clock::time_point moved;   ///< when it last made one, or was not behind
  };

  Part& part(int rank) const { return *reinterpret_cast<Part*>(memory_.part(rank)); }
  CallLog& mine() const { return part(control_.rank()).log; }
  void compare(int rank);
  [[noreturn]] void tell_difference(int rank, std::uint64_t agreed, std::uint64_t differs) const;
  void require_pace(int rank, bool left);
  std::string call_text(std::uint64_t number) const;

  Communicator& control_;
  PeerMemory memory_;
  std::mutex mutex_;
  std::vector<Peer> peers_;
};

}  // namespace aliquot
