#include "aliquot/control.h"

#include <unistd.h>

#include <algorithm>
#include <exception>

#include "aliquot/error.h"
#include "control_impl.h"
#include "rank.h"
#include "waiter.h"

namespace aliquot {
namespace {

constexpr std::chrono::seconds longest_farewell(1);

constexpr std::chrono::hours for_ever(1 << 16);

}  // namespace

ControlChannel::ControlChannel(const KeyValueStore& store, const std::string& name, int rank, int world_size,
                               const ControlOptions& options)
    : impl_(std::make_unique<Impl>(rank, world_size, options.patience)) {
  impl_->join(store, name, options);
}

// The thread of the channel is not there in a fork, and its lock may be held for ever.
ControlChannel::~ControlChannel() {
  if (getpid() != impl_->creator) static_cast<void>(impl_.release());
}

int ControlChannel::rank() const noexcept { return impl_->rank; }
int ControlChannel::world_size() const noexcept { return impl_->world_size; }
void ControlChannel::require_intact() const { impl_->require_intact(); }
void ControlChannel::look_for_lost(std::chrono::milliseconds patience) const { impl_->look_for_lost(patience); }
std::shared_ptr<void> ControlChannel::on_fault(FaultHandler handler) { return impl_->on_fault(std::move(handler)); }
std::vector<std::string> ControlChannel::all_gather(const std::string& name, std::string_view payload,
                                                    std::chrono::milliseconds timeout) {
  return impl_->all_gather(name, payload, timeout);
}
void ControlChannel::announce(std::string_view reason) noexcept { impl_->announce(reason); }
void ControlChannel::leave() noexcept { impl_->leave(); }
void ControlChannel::advance() noexcept { ++impl_->steps; }
std::vector<std::uint64_t> ControlChannel::progress() const { return impl_->progress(); }
void ControlChannel::request_stop() noexcept { impl_->request_stop(); }
bool ControlChannel::should_stop() { return impl_->should_stop(); }
bool ControlChannel::stop_on_terminate() { return impl_->stop_on_terminate(); }

ControlChannel::Impl::Impl(int rank, int world_size, std::chrono::milliseconds patience)
    : rank(rank), world_size(world_size), creator(getpid()),
      heartbeats_((require_rank(rank, world_size), static_cast<std::size_t>(world_size)), patience, Clock::now()),
      rounds_(static_cast<std::size_t>(world_size)), vote_(static_cast<std::size_t>(world_size)) {
  if (patience < std::chrono::milliseconds(10)) {
    throw InvalidArgument("patience is " + std::to_string(patience.count()) + " ms; it is at least 10");
  }
  peers_.resize(static_cast<std::size_t>(world_size));
}

void ControlChannel::Impl::join(const KeyValueStore& store, const std::string& name, const ControlOptions& options) {
  const std::string key = name + "/invitation";
  if (rank == 0 && world_size > 1) {
    doorman_ = std::make_unique<Doorman>(options.address, world_size);
    store.set(key, doorman_->invitation());
  } else if (rank != 0) {
    peers_[0].line = call(store.get(key), rank, options.timeout);
  }
  joined_ = world_size == 1;
  thread_ = std::thread([this] { run(); });
  Lock lock(mutex_);
  const auto somebody_left = [this] { return std::ranges::any_of(peers_, &Peer::left); };
  if (wait(lock, options.timeout, [&] { return joined_ || somebody_left(); })) {
    require_usable();
    if (joined_) return;
    throw CommunicatorError("rank " + std::to_string(rank) + ": another rank gave up before all had joined");
  }
  std::string text = "rank " + std::to_string(rank) + " waited for all ranks to join, in vain for " +
                     std::to_string(options.timeout.count()) + " ms";
  if (rank == 0) text += "; not arrived: " + list_of(missing());
  throw CommunicatorError(text + ". See what the ranks do; if they are only slow to start, give a longer timeout");
}

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

void ControlChannel::Impl::announce(std::string_view reason) noexcept try {
  if (getpid() != creator) return;
  Lock lock(mutex_);
  if (left_) return;
  end(rank, "rank " + std::to_string(rank) + " gave up: " + std::string(reason));
  wake_.wake();
  changed_.wait_for(lock, longest_farewell, [this] { return !has_unsent(); });
} catch (const std::exception&) {
  return;  // no memory for the sentence: the others will see the end of this rank
}

void ControlChannel::Impl::leave() noexcept {
  if (getpid() != creator) return;
  {
    const Lock lock(mutex_);
    if (std::exchange(left_, true)) return;
    farewell_ = Clock::now() + longest_farewell;
    for (const Peer& peer : peers_) {
      if (peer.line) peer.line->send(make_frame(Kind::left, static_cast<std::uint64_t>(rank)));
    }
  }
  wake_.wake();
  if (thread_.joinable()) thread_.join();
  forget_sigterm();
  const Lock lock(mutex_);
  for (Peer& peer : peers_) peer.line.reset();
  changed_.notify_all();
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

template <typename Ready>
bool ControlChannel::Impl::wait(Lock& lock, std::chrono::milliseconds patience, const Ready& ready) const {
  const auto deadline = Clock::now() + patience;
  while (!ready() && !fault_ && !left_) {
    const auto now = Clock::now();
    if (now >= deadline) return false;
    changed_.wait_until(lock, std::min(deadline, now + interrupt_interval));
    if (!interrupt_check()) continue;
    lock.unlock();  // it may take the interpreter's lock
    try {
      interrupt_check()();
    } catch (...) {
      lock.lock();
      throw;
    }
    lock.lock();
  }
  return true;
}

void ControlChannel::Impl::require_usable() const {
  if (fault_) fault_->raise();
  if (left_) throw CommunicatorError("rank " + std::to_string(rank) + " has left the control channel");
}

bool ControlChannel::Impl::all_joined() const { return missing().empty(); }

std::vector<int> ControlChannel::Impl::missing() const {
  std::vector<int> ranks;
  for (int r = 1; r < world_size; ++r) {
    const Peer& peer = peers_[static_cast<std::size_t>(r)];
    if (!peer.line && !peer.left) ranks.push_back(r);
  }
  return ranks;
}

bool ControlChannel::Impl::has_unsent() const {
  return std::ranges::any_of(peers_, [](const Peer& peer) { return peer.line && peer.line->has_unsent(); });
}

void ControlChannel::Impl::Fault::raise() const {
  if (lost >= 0) throw PeerLost(lost, text);
  throw CommunicatorError(text);
}

bool ControlChannel::Impl::Gathering::complete() const {
  return std::ranges::all_of(parts, [](const auto& part) { return part.has_value(); });
}

}  // namespace aliquot
