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
/// How much longer than rank 0, which knows who is missing, the others wait for all to join.
constexpr std::chrono::seconds hearing_time(2);

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
std::shared_ptr<void> ControlChannel::listen(const std::string& name, Listener listener) {
  return impl_->listen(name, std::move(listener));
}
void ControlChannel::tell(int to, const std::string& name, std::string_view text) { impl_->tell(to, name, text); }
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
  const auto longest = rank == 0 ? options.timeout : options.timeout + hearing_time;
  const bool waited = wait(lock, longest, [&] { return joined_ || somebody_left(); });
  if (!waited) give_up_joining(lock, options.timeout);
  require_usable();
  if (!joined_) {
    throw CommunicatorError("rank " + std::to_string(rank) + ": another rank gave up before all had joined");
  }
}

void ControlChannel::Impl::give_up_joining(Lock& lock, std::chrono::milliseconds timeout) {
  const std::vector<int> late = rank == 0 ? missing() : std::vector{0};
  end(late.front(), "rank " + std::to_string(rank) + " waited for all ranks to join, in vain for " +
                        std::to_string(timeout.count()) + " ms; not arrived: " + list_of(late) +
                        ". See what the ranks do; if they are only slow to start, give a longer timeout");
  say_all(lock);
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

bool ControlChannel::Impl::wait(Lock& lock, std::chrono::milliseconds patience,
                                const std::function<bool()>& ready) const {
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

}  // namespace aliquot
