/// \file
/// When to say that one lives, and who has not said so for too long.
#pragma once

#include <algorithm>
#include <chrono>
#include <optional>
#include <vector>

namespace aliquot {

/// The clockwork of a ControlChannel: told the time, it says what is due.
class Heartbeats {
 public:
  using Clock = std::chrono::steady_clock;

  Heartbeats(std::size_t world_size, std::chrono::milliseconds patience, Clock::time_point now)
      : patience_(patience), interval_(std::min<Clock::duration>(std::chrono::seconds(1), patience_ / 10)),
        heard_(world_size, now), looked_(now), next_(now) {}

  void hear(int rank, Clock::time_point now) { heard_[static_cast<std::size_t>(rank)] = now; }

  /// Call it at every turn, when all that has arrived was heard. A rank that was suspended itself (a signal, a
  /// debugger, a closed lid) has heard nobody meanwhile: all begin anew.
  void look(Clock::time_point now) {
    if (now - looked_ > 3 * interval_) std::fill(heard_.begin(), heard_.end(), now);
    looked_ = now;
  }
  bool silent(int rank) const { return looked_ >= silent_at(rank); }
  /// When it will be, if it goes on saying nothing.
  Clock::time_point silent_at(int rank) const { return heard_[static_cast<std::size_t>(rank)] + patience_; }

  /// True once in each interval.
  bool due(Clock::time_point now) {
    if (now < next_) return false;
    next_ = now + interval_;
    return true;
  }
  Clock::time_point next() const { return next_; }
  std::chrono::milliseconds patience() const { return patience_; }

 private:
  std::chrono::milliseconds patience_;
  Clock::duration interval_;
  std::vector<Clock::time_point> heard_;
  Clock::time_point looked_;
  Clock::time_point next_;
};

}  // namespace aliquot
