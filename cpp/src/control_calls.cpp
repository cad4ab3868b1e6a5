#include <unistd.h>

#include <algorithm>
#include <exception>

#include "aliquot/error.h"
#include "control_impl.h"
#include "rank.h"

namespace aliquot {
namespace {

constexpr std::chrono::seconds longest_announcement(1);
constexpr std::chrono::hours for_ever(1 << 16);

}  // namespace

void ControlChannel::Impl::require_intact() const {
  const Lock lock(mutex_);
  if (fault_) fault_->raise();
}

void ControlChannel::Impl::look_for_lost(std::chrono::milliseconds patience) const {
  Lock lock(mutex_);
  const auto who_left = [this] { return std::ranges::find_if(peers_, [](const Peer& peer) { return peer.left; }); };
  wait(lock, patience, [&] { return who_left() != peers_.end(); });
  require_usable();
  if (const auto peer = who_left(); peer != peers_.end()) {
    const auto who = static_cast<int>(peer - peers_.begin());
    throw PeerLost(who, named(who) + " has left (it ended in good order)");
  }
}

std::shared_ptr<void> ControlChannel::Impl::on_fault(FaultHandler handler) {
  const std::lock_guard telling(handlers_->mutex);
  if (handlers_->told) {
    Lock lock(mutex_);
    const Fault fault = *fault_;
    lock.unlock();
    handler(fault.lost, fault.text);
  }
  const auto place = handlers_->list.insert(handlers_->list.end(), std::move(handler));
  return {&*place, [handlers = handlers_, place, creator = creator](void*) {
            if (getpid() != creator) return;  // nobody there who calls it, and its lock may be held for ever
            const std::lock_guard forgetting(handlers->mutex);
            handlers->list.erase(place);
          }};
}

std::vector<std::string> ControlChannel::Impl::all_gather(const std::string& name, std::string_view payload,
                                                          std::chrono::milliseconds timeout) {
  if (payload.size() > longest_payload) {
    throw InvalidArgument("all_gather '" + name + "': " + std::to_string(payload.size()) + " bytes are too many; " +
                          std::to_string(longest_payload) + " at most");
  }
  Lock lock(mutex_);
  require_usable();
  const auto [place, fresh] = gatherings_.try_emplace(name, Gathering{Rounds::Parts(peers_.size()), {}});
  if (!fresh) throw InvalidArgument("all_gather '" + name + "' is under way already: use another name");
  struct Forget {
    ~Forget() { gatherings.erase(place); }
    std::map<std::string, Gathering>& gatherings;
    std::map<std::string, Gathering>::iterator place;
  } const forget{gatherings_, place};
  Gathering& mine = place->second;
  const auto longest = static_cast<std::uint64_t>(std::max<std::int64_t>(timeout.count(), 0));
  send_to(0, make_frame(Kind::part, name, longest, payload));
  wake_.wake();
  // No deadline here: rank 0 says when it has passed, unless it is lost.
  wait(lock, for_ever, [&] { return mine.refusal || mine.complete() || peers_[0].left; });
  if (!mine.complete()) explain(mine);
  std::vector<std::string> payloads;
  for (auto& part : mine.parts) payloads.push_back(std::move(*part));
  return payloads;
}

void ControlChannel::Impl::explain(const Gathering& failed) const {
  if (failed.refusal) failed.refusal->raise();
  require_usable();
  throw PeerLost(0, "rank 0 has left (it ended in good order), and with it the control channel");
}

std::shared_ptr<void> ControlChannel::Impl::listen(const std::string& name, Listener listener) {
  const std::lock_guard adding(listeners_->mutex);
  const auto place = listeners_->by_name.emplace(name, std::move(listener));
  return {&*place, [listeners = listeners_, place, creator = creator](void*) {
            if (getpid() != creator) return;  // as for handlers
            const std::lock_guard forgetting(listeners->mutex);
            listeners->by_name.erase(place);
          }};
}

void ControlChannel::Impl::tell(int to, const std::string& name, std::string_view text) {
  require_rank(to, world_size);
  if (getpid() != creator) return;
  const Lock lock(mutex_);
  if (left_) return;
  send_to(0, make_frame(Kind::told, static_cast<std::uint64_t>(to), name, text));
  wake_.wake();
}

void ControlChannel::Impl::announce(std::string_view reason) noexcept try {
  if (getpid() != creator) return;
  Lock lock(mutex_);
  if (left_) return;
  end(rank, "rank " + std::to_string(rank) + " gave up: " + std::string(reason));
  say_all(lock);
} catch (const std::exception&) {
  return;  // no memory for the sentence: the others will see the end of this rank
}

void ControlChannel::Impl::say_all(Lock& lock) {
  wake_.wake();
  changed_.wait_for(lock, longest_announcement, [this] { return !has_unsent(); });
}

std::vector<std::uint64_t> ControlChannel::Impl::progress() const {
  const Lock lock(mutex_);
  std::vector<std::uint64_t> counts;
  for (const Peer& peer : peers_) counts.push_back(peer.progress);
  counts[static_cast<std::size_t>(rank)] = steps;
  return counts;
}

void ControlChannel::Impl::request_stop() noexcept {
  stop_wanted_ = true;
  wake_.wake();
}

bool ControlChannel::Impl::should_stop() {
  Lock lock(mutex_);
  require_usable();
  ++stop_calls_;
  if (counted_) wait(lock, for_ever, [this] { return stop_at_ || peers_[0].left; });
  if (!stop_at_) require_usable();
  return stop_at_ && stop_calls_ >= *stop_at_;
}

void ControlChannel::Impl::Fault::raise() const {
  if (lost >= 0) throw PeerLost(lost, text);
  throw CommunicatorError(text);
}

bool ControlChannel::Impl::Gathering::complete() const {
  return std::ranges::all_of(parts, [](const auto& part) { return part.has_value(); });
}

}  // namespace aliquot
