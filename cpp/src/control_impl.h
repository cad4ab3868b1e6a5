/// \file
/// The inside of a ControlChannel.
#pragma once

#include <poll.h>
#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "aliquot/control.h"
#include "doorman.h"
#include "heartbeats.h"
#include "rounds.h"
#include "stop_vote.h"

namespace aliquot {

/// Who wants to know of a fault. Outlives the channel for as long as anybody does.
struct FaultHandlers {
  std::mutex mutex;
  std::list<ControlChannel::FaultHandler> list;
  bool told = false;
};

/// Who wants to hear what under a name. Outlives the channel as handlers do.
struct Listeners {
  std::mutex mutex;
  std::multimap<std::string, ControlChannel::Listener> by_name;
};

/// One mutex guards everything that is not atomic. Ranks say everything to rank 0, which tells the others; rank 0 says
/// it to itself, without a connection. Functions that begin with "on_" are about a frame of that kind.
class ControlChannel::Impl {
 public:
  Impl(int rank, int world_size, std::chrono::milliseconds patience);
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() { leave(); }

  /// Returns when all ranks have joined.
  void join(const KeyValueStore& store, const std::string& name, const ControlOptions& options);
  void require_intact() const;
  void look_for_lost(std::chrono::milliseconds patience) const;
  std::shared_ptr<void> on_fault(FaultHandler handler);
  std::vector<std::string> all_gather(const std::string& name, std::string_view payload,
                                      std::chrono::milliseconds timeout);
  std::shared_ptr<void> listen(const std::string& name, Listener listener);
  void tell(int to, const std::string& name, std::string_view text);
  void announce(std::string_view reason) noexcept;
  void leave() noexcept;
  std::vector<std::uint64_t> progress() const;
  bool should_stop();
  /// Async-signal-safe.
  void request_stop() noexcept;
  bool stop_on_terminate();

  const int rank;
  const int world_size;
  const pid_t creator;
  std::atomic<std::uint64_t> steps = 0;

 private:
  using Clock = std::chrono::steady_clock;
  using Lock = std::unique_lock<std::mutex>;
  struct Fault {
    int lost;
    std::string text;

    [[noreturn]] void raise() const;
  };
  struct Peer {
    std::unique_ptr<Connection> line;
    std::uint64_t pid = 0;
    std::uint64_t progress = 0;
    bool left = false;
  };
  struct Told {
    int from;
    std::string name, text;
  };
  struct Gathering {
    Rounds::Parts parts;
    std::optional<Fault> refusal;

    bool complete() const;
  };

  // On the thread of the channel: control_thread.cpp
  void run();
  std::vector<pollfd> watched() const;
  std::chrono::milliseconds until_next() const;
  /// True for a peer whose silence would be a fault: not for one that has left, nor after a fault.
  bool may_be_silent(int who) const;
  bool may_end() const;
  void turn(Clock::time_point now);
  void let_in(Clock::time_point now);
  void hear(int from, Clock::time_point now);
  void drop(int peer);
  void judge_silence();
  void refuse_overdue(Clock::time_point now);
  void beat();
  void flush();
  void tell_handlers();
  void tell_listeners();

  // What is said: control_frames.cpp
  void take(int from, const Frame& frame);
  void on_heartbeat(int from, BodyReader& body);
  void on_left(int who);
  void on_part(int from, BodyReader& body);
  void on_gathered(BodyReader& body);
  void on_refused(BodyReader& body);
  void on_stop();
  void on_count();
  void on_counted(int from, std::uint64_t calls);
  void on_told(int from, int other, std::string name, std::string text);
  void send_to(int to, const Frame& frame);
  void tell_all(const Frame& frame);
  void refuse(const std::vector<std::pair<std::string, Rounds::Round>>& rounds, int lost, const std::string& how);
  void refuse_without(int who);
  /// The world ends; if it has ended already, nothing happens.
  void end(int lost, const std::string& text);
  std::string named(int who) const;

  bool all_joined() const;
  std::vector<int> missing() const;
  bool has_unsent() const;
  /// Waits until `ready()`, a fault, or that this rank leaves; false if `patience` passes before. Interruptible.
  bool wait(Lock& lock, std::chrono::milliseconds patience, const std::function<bool()>& ready) const;
  void require_usable() const;
  /// Tells who is there who has not come, which is a fault.
  void give_up_joining(Lock& lock, std::chrono::milliseconds timeout);
  /// Returns when all is sent that is to be said, or after a second.
  void say_all(Lock& lock);
  [[noreturn]] void explain(const Gathering& failed) const;
  void forget_sigterm() const noexcept;

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  WakeUp wake_;
  std::shared_ptr<FaultHandlers> handlers_ = std::make_shared<FaultHandlers>();
  std::shared_ptr<Listeners> listeners_ = std::make_shared<Listeners>();
  std::vector<Told> told_;  ///< and not heard yet
  std::vector<Peer> peers_;
  std::unique_ptr<Doorman> doorman_;
  Heartbeats heartbeats_;
  Rounds rounds_;
  StopVote vote_;
  std::map<std::string, Gathering> gatherings_;
  std::optional<Fault> fault_;
  bool joined_ = false;
  bool left_ = false;
  Clock::time_point farewell_;  ///< when to end at the latest, once left_
  std::atomic<bool> stop_wanted_ = false;
  bool counted_ = false;
  std::uint64_t stop_calls_ = 0;
  std::optional<std::uint64_t> stop_at_;
  std::thread thread_;
};

}  // namespace aliquot
