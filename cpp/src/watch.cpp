#include "watch.h"

#include <algorithm>
#include <atomic>
#include <span>
#include <thread>
#include <vector>

#include "aliquot/error.h"
#include "shared_memory.h"

namespace aliquot {
namespace {

using namespace std::chrono_literals;

// A rank's death, and what others called, are known within this time.
constexpr auto longest_rumour = 2s;
constexpr auto between_letters = 20ms;

/// Where one-sided ranks keep their calls; for others, room of this rank's own.
PeerMemory memory_of_calls(Communicator& control, const ControlChannel* channel) {
  Watch::require_sight(control, channel);
  if (control.one_sided()) return control.share(sizeof(CallsOfRank));
  const auto memory = SharedMemory::create(sizeof(CallsOfRank) * static_cast<std::size_t>(control.world_size()));
  memory->close_file();
  return {std::shared_ptr<std::byte>(memory, memory->data()), sizeof(CallsOfRank)};
}

}  // namespace

Watch::Watch(Communicator& control, ControlChannel* channel)
    : control_(control), channel_(channel), memory_(memory_of_calls(control, channel)),
      peers_(static_cast<std::size_t>(control.world_size())) {
  if (!control.one_sided()) {
    mail_.emplace(control, *channel, [this](int rank) -> CallsOfRank& { return calls_of(rank); });
  }
}

void Watch::require_sight(const Communicator& control, const ControlChannel* channel) {
  if (control.one_sided()) return;
  if (channel != nullptr && channel->rank() == control.names().of(control.rank())) return;
  throw InvalidArgument(
      "a transport of GPUs needs a one-sided communicator of the same ranks beside it, such as shared_memory, or, "
      "between hosts, the control channel that knows them by the same names");
}

void Watch::say(std::string_view collective, const Tag& tag, std::uint64_t size, int root) noexcept {
  mine().add(make_envelope(collective, tag, size, root));
}

void Watch::leave() noexcept try {
  std::atomic_ref(calls_of(control_.rank()).left).store(1, std::memory_order_release);
  const std::lock_guard lock(mutex_);
  if (mail_) mail_->say();
} catch (const std::exception&) {
  return;  // no memory for the words: the control channel says it too
}

void Watch::look() {
  const std::lock_guard lock(mutex_);
  control_.require_intact();
  if (mail_) mail_->exchange();
  for (int rank = 0; rank < control_.world_size(); ++rank) {
    if (!compares_with(rank)) continue;
    const bool left = reached(calls_of(rank).left, 1);  // asked before its calls are counted: it makes none later
    compare(rank);
    require_pace(rank, left);
  }
}

void Watch::require_agreement(const Tag& tag) {
  const auto last = mine().find(mine().size());
  const std::uint64_t digest = last ? last->digest : 0;
  std::vector<std::uint64_t> digests(peers_.size());
  control_.all_gather(tag, std::as_bytes(std::span(&digest, 1)), reinterpret_cast<std::byte*>(digests.data()), {});
  if (std::ranges::count(digests, digest) == std::ssize(digests)) return;
  for (const auto end = Clock::now() + longest_rumour; Clock::now() < end; std::this_thread::yield()) look();
  throw CommunicatorError("ranks disagree: they have come to " + call_text(mine().size()) +
                          " by different calls. Every rank must call the same collectives in the same order");
}

void Watch::look_for_reason() {
  look();
  if (!mail_) return;
  for (const auto end = Clock::now() + longest_rumour; Clock::now() < end; look()) {
    channel_->look_for_lost(between_letters);
  }
}

// Equal digests of call n say that all calls up to n were equal, so only the last one that both made is looked at.
void Watch::compare(int rank) {
  Peer& peer = peers_[static_cast<std::size_t>(rank)];
  const std::uint64_t common = std::min(mine().size(), calls_of(rank).log.size());
  if (common == peer.agreed) return;
  const auto ours = mine().find(common);
  const auto theirs = calls_of(rank).log.find(common);
  if (!ours || !theirs) return;  // one of the two ran ahead; it is compared when the other has come closer, or by that
  if (ours->digest != theirs->digest) {
    if (mail_ && !mail_->brought(rank, peer.agreed + 1, common)) return;
    tell_difference(rank, peer.agreed, common);
  }
  peer.agreed = common;
}

void Watch::tell_difference(int rank, std::uint64_t agreed, std::uint64_t differs) const {
  for (std::uint64_t number = agreed + 1; number <= differs; ++number) {
    const auto ours = mine().find(number);
    const auto theirs = calls_of(rank).log.find(number);
    if (!ours || !theirs || ours->call == theirs->call) continue;
    const bool first = control_.rank() < rank;
    throw CommunicatorError(first ? disagreement(name_of(control_.rank()), ours->call, name_of(rank), theirs->call)
                                  : disagreement(name_of(rank), theirs->call, name_of(control_.rank()), ours->call));
  }
  throw CommunicatorError("ranks disagree: " + named(control_.rank()) + " and " + named(rank) +
                          " made different calls between call " + std::to_string(agreed) + " and call " +
                          std::to_string(differs) +
                          ", too many to remember which. Every rank must call the same collectives in the same order");
}

void Watch::require_pace(int rank, bool left) {
  Peer& peer = peers_[static_cast<std::size_t>(rank)];
  const std::uint64_t theirs = calls_of(rank).log.size();
  const auto now = Clock::now();
  const bool behind = theirs < mine().size();
  if (!behind || theirs != peer.seen || peer.moved == Clock::time_point{}) peer.moved = now;
  peer.seen = theirs;
  if (!behind) return;
  const auto waits = [&] { return named(control_.rank()) + " waited for " + call_text(theirs + 1); };
  if (left) {
    throw PeerLost(name_of(rank), named(rank) + " has left (its communicator was destroyed) while " + waits());
  }
  if (now - peer.moved > control_.timeout()) {
    throw CommunicatorError(waits() + ", in vain for " + std::to_string(control_.timeout().count()) +
                            " ms (the communicator's timeout); not arrived: " + named(rank) + ", which has made " +
                            std::to_string(theirs) +
                            " calls. See what it does; if it is only slow, give a longer timeout");
  }
}

std::string Watch::call_text(std::uint64_t number) const {
  const auto record = mine().find(number);
  return record ? to_text(record->call) : "call " + std::to_string(number);
}

}  // namespace aliquot
