#include <algorithm>

#include "aliquot/error.h"
#include "aliquot/watchdog.h"
#include "control_impl.h"

namespace aliquot {
namespace {

constexpr std::chrono::seconds longest_end(5);

}  // namespace

void ControlChannel::Impl::run() {
  for (Lock lock(mutex_); !may_end();) {
    std::vector<pollfd> files = watched();
    const auto rest = until_next();
    lock.unlock();
    poll(files.data(), files.size(), static_cast<int>(rest.count()));
    wake_.clear();
    lock.lock();
    turn(Clock::now());
    changed_.notify_all();
    lock.unlock();
    tell_handlers();
    tell_listeners();
    lock.lock();
  }
}

std::vector<pollfd> ControlChannel::Impl::watched() const {
  std::vector<pollfd> files{{.fd = wake_.number(), .events = POLLIN, .revents = 0}};
  for (const Peer& peer : peers_) {
    if (!peer.line) continue;
    const auto events = static_cast<short>(peer.line->has_unsent() ? POLLIN | POLLOUT : POLLIN);
    files.push_back({.fd = peer.line->number(), .events = events, .revents = 0});
  }
  for (const int number : doorman_ ? doorman_->descriptors() : std::vector<int>{}) {
    files.push_back({.fd = number, .events = POLLIN, .revents = 0});
  }
  return files;
}

std::chrono::milliseconds ControlChannel::Impl::until_next() const {
  auto next = rounds_.next_deadline(left_ ? std::min(farewell_, heartbeats_.next()) : heartbeats_.next());
  for (int r = 0; r < world_size; ++r) {
    if (may_be_silent(r)) next = std::min(next, heartbeats_.silent_at(r));
  }
  return std::max(std::chrono::ceil<std::chrono::milliseconds>(next - Clock::now()), std::chrono::milliseconds(0));
}

bool ControlChannel::Impl::may_be_silent(int who) const {
  const Peer& peer = peers_[static_cast<std::size_t>(who)];
  return peer.line && !peer.left && !fault_;
}

bool ControlChannel::Impl::may_end() const { return left_ && (!has_unsent() || Clock::now() >= farewell_); }

void ControlChannel::Impl::turn(Clock::time_point now) {
  let_in(now);
  for (int r = 0; r < world_size; ++r) hear(r, now);
  heartbeats_.look(now);
  judge_silence();
  refuse_overdue(now);
  if (stop_wanted_.exchange(false)) send_to(0, make_frame(Kind::stop));
  if (heartbeats_.due(now)) beat();
  flush();
}

void ControlChannel::Impl::let_in(Clock::time_point now) {
  if (!doorman_) return;
  for (Doorman::Caller& caller : doorman_->look(now)) {
    Peer& peer = peers_[static_cast<std::size_t>(caller.rank)];
    if (peer.line || peer.left) continue;
    peer.line = std::move(caller.connection);
    peer.pid = caller.pid;
    heartbeats_.hear(caller.rank, now);
  }
  if (!all_joined()) return;
  doorman_.reset();
  tell_all(make_frame(Kind::welcome));
}

void ControlChannel::Impl::hear(int from, Clock::time_point now) try {
  Peer& peer = peers_[static_cast<std::size_t>(from)];
  if (!peer.line) return;
  const bool open = peer.line->receive();
  while (const auto frame = peer.line->reader().next()) {
    heartbeats_.hear(from, now);
    take(from, *frame);
  }
  if (!open) drop(from);
} catch (const CommunicatorError& error) {
  end(from, named(from) + " does not speak the language of the control channel: " + error.what());
  peers_[static_cast<std::size_t>(from)].line.reset();
}

void ControlChannel::Impl::drop(int peer) {
  Peer& gone = peers_[static_cast<std::size_t>(peer)];
  gone.line.reset();
  if (!gone.left && !left_) {
    end(peer, named(peer) + " is gone: its process has ended, or its host can't be reached any more. Its own output, " +
                  "or its host's log, may say why");
  }
}

void ControlChannel::Impl::judge_silence() {
  for (int r = 0; r < world_size; ++r) {
    if (!may_be_silent(r) || !heartbeats_.silent(r)) continue;
    end(r, named(r) + " is frozen: it has said nothing for " + std::to_string(heartbeats_.patience().count()) +
               " ms, after " + std::to_string(peers_[static_cast<std::size_t>(r)].progress) +
               " steps. It was stopped by a signal or a debugger, or " + "its host hangs");
  }
}

void ControlChannel::Impl::refuse_overdue(Clock::time_point now) {
  refuse(rounds_.overdue(now), -1, "gave nothing in time. See what they do; if they are only slow, wait for longer");
}

void ControlChannel::Impl::beat() {
  peers_[static_cast<std::size_t>(rank)].progress = steps;
  Frame frame = make_frame(Kind::heartbeat);
  if (rank != 0) {
    append(frame.body, peers_[static_cast<std::size_t>(rank)].progress);
  } else {
    for (const Peer& peer : peers_) append(frame.body, peer.progress);
  }
  for (const Peer& peer : peers_) {
    if (peer.line) peer.line->send(frame);
  }
}

void ControlChannel::Impl::flush() {
  for (int r = 0; r < world_size; ++r) {
    const auto& line = peers_[static_cast<std::size_t>(r)].line;
    if (line && !line->flush()) hear(r, Clock::now());  // what it said last comes before its end
  }
}

// The peers know by now: what they meet first is the reason.
void ControlChannel::Impl::tell_handlers() {
  Lock lock(mutex_);
  if (!fault_) return;
  const Fault fault = *fault_;
  lock.unlock();
  const std::lock_guard telling(handlers_->mutex);
  if (std::exchange(handlers_->told, true)) return;
  const Watchdog watchdog(longest_end,
                          "the end of rank " + std::to_string(rank) + "'s communicator (" + fault.text + ")");
  for (const FaultHandler& handler : handlers_->list) handler(fault.lost, fault.text);
}

void ControlChannel::Impl::tell_listeners() {
  std::vector<Told> told;
  {
    const Lock lock(mutex_);
    told.swap(told_);
  }
  const std::lock_guard telling(listeners_->mutex);
  for (const auto& [from, name, text] : told) {
    const auto [first, last] = listeners_->by_name.equal_range(name);
    for (auto listener = first; listener != last; ++listener) listener->second(from, text);
  }
}

}  // namespace aliquot
