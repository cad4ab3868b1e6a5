/// \file
/// How logs of calls travel between ranks that map no memory of each other.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/control.h"
#include "call_log.h"

namespace aliquot {

/// What one rank says of its calls.
struct CallsOfRank {
  CallLog log;
  Signal left;  ///< 1: it makes no more
};

/// Brings copies of other ranks' calls, over a control channel: of each rank the latest, and with it how many there are
/// and the digest of all; those before only when asked for. Ranks compare themselves with rank 0, and rank 0 with all:
/// that finds whatever differs, and costs rank 0 a few messages a second for each of the others. One thread at a time.
class CallMail {
 public:
  using CallsOf = std::function<CallsOfRank&(int rank)>;

  /// Collective over `control`, whose names() are the ranks of `channel`. `calls_of` says where copies are kept, and
  /// where this rank's own calls are.
  CallMail(Communicator& control, ControlChannel& channel, CallsOf calls_of);

  /// True for ranks whose calls come here.
  bool comes_from(int rank) const { return rank != rank_ && (rank_ == 0 || rank == 0); }
  /// Takes what has come, answers, and says what is new, though not more often than 5 times a second. Never waits.
  void exchange();
  /// Says at once how far this rank has come.
  void say();
  /// True when of the calls from `first` to `last`, whose digests differ, those of `rank` are here up to the first that
  /// differs; until then it has been asked for them, for a few seconds at most.
  bool brought(int rank, std::uint64_t first, std::uint64_t last);

 private:
  using Clock = std::chrono::steady_clock;
  struct Inbox {
    std::mutex mutex;
    std::vector<std::pair<int, std::string>> letters;  ///< by whom in the channel
  };
  /// A letter: whether its sender has left, which calls it asks for, and calls of its own.
  struct Letter {
    std::uint64_t left = 0;
    std::uint64_t first = 0, last = 0;  ///< zeros: none
    std::string records;
  };

  void send(int to, const Letter& letter);
  void take(int from, const std::string& text);
  CallsOfRank& mine() const { return calls_of_(rank_); }
  std::string records(std::uint64_t first, std::uint64_t last) const;

  ControlChannel& channel_;
  CallsOf calls_of_;
  int rank_;
  int world_size_;
  RankNames names_;
  std::string name_;
  std::shared_ptr<Inbox> inbox_ = std::make_shared<Inbox>();
  std::uint64_t said_ = 0;  ///< calls
  Clock::time_point said_at_;
  std::vector<Clock::time_point> asked_at_;  ///< by rank
  std::shared_ptr<void> listening_;
};

}  // namespace aliquot
