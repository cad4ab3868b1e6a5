/// \file
/// Watches over ranks whose calls don't wait for each other on the host.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/control.h"
#include "call_mail.h"

namespace aliquot {

/// For a transport that only hands collectives to a device, where ranks that disagree would wait for each other for
/// ever: each rank says what it calls, and someone beside it (a thread that may look as often as it likes) compares.
class Watch {
 public:
  /// Collective over `control`, a communicator of the same ranks for host memory, whose timeout is how long a rank may
  /// be behind the others. What ranks call is seen in its memory if it is one-sided; else it travels over `channel`, to
  /// which the ranks are known by control's names(). Both must outlive this object.
  /// \throws InvalidArgument if there is neither
  explicit Watch(Communicator& control, ControlChannel* channel = nullptr);
  /// What a maker of one begins with. \throws InvalidArgument as the constructor does
  static void require_sight(const Communicator& control, const ControlChannel* channel);

  /// Says that this rank makes its next call, before it does. Never waits. One thread at a time.
  void say(std::string_view collective, const Tag& tag, std::uint64_t size, int root = -1) noexcept;
  /// Says that this rank makes no more calls: peers that need one from it are told PeerLost.
  void leave() noexcept;

  /// Looks once; never waits. Safe from any thread.
  /// \throws CommunicatorError if a peer made other calls than this rank (names both calls), if one has been behind for
  /// longer than the timeout, or if a rank aborted; PeerLost if one was killed, or left while a call needs it.
  void look();
  /// Collective over `control`, behind the same number of calls: returns when all ranks are there.
  /// \throws CommunicatorError on every rank if they got there by different calls
  void require_agreement(const Tag& tag);
  /// Whoever has met an error of the transport asks first whether a lost rank, or calls that differ, are the reason: of
  /// other hosts this is known a little later. \throws as look() if so
  void look_for_reason();

 private:
  using Clock = std::chrono::steady_clock;
  struct Peer {
    std::uint64_t agreed = 0;  ///< calls that were compared
    std::uint64_t seen = 0;    ///< calls that it had made when it was looked at last
    Clock::time_point moved;   ///< when it last made one, or was not behind
  };

  CallsOfRank& calls_of(int rank) const { return *reinterpret_cast<CallsOfRank*>(memory_.part(rank)); }
  CallLog& mine() const { return calls_of(control_.rank()).log; }
  bool compares_with(int rank) const { return mail_ ? mail_->comes_from(rank) : rank != control_.rank(); }
  void compare(int rank);
  [[noreturn]] void tell_difference(int rank, std::uint64_t agreed, std::uint64_t differs) const;
  void require_pace(int rank, bool left);
  std::string call_text(std::uint64_t number) const;
  int name_of(int rank) const { return control_.names().of(rank); }
  std::string named(int rank) const { return "rank " + std::to_string(name_of(rank)); }

  Communicator& control_;
  ControlChannel* channel_;
  PeerMemory memory_;  ///< of CallsOfRank: the ranks' own, or copies
  std::optional<CallMail> mail_;
  std::mutex mutex_;
  std::vector<Peer> peers_;
};

}  // namespace aliquot
