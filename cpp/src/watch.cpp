#include "watch.h"

#include <algorithm>
#include <atomic>

#include "aliquot/error.h"

namespace aliquot {

Watch::Watch(Communicator& control)
    : control_(control), memory_(control.share(sizeof(Part))), peers_(static_cast<std::size_t>(control.world_size())) {}

void Watch::say(std::string_view collective, const Tag& tag, std::uint64_t size, int root) noexcept {
  mine().add(make_envelope(collective, tag, size, root));
}

void Watch::leave() noexcept { std::atomic_ref(part(control_.rank()).left).store(1, std::memory_order_release); }

void Watch::look() {
  const std::lock_guard lock(mutex_);
  control_.require_intact();
  for (int rank = 0; rank < control_.world_size(); ++rank) {
    if (rank == control_.rank()) continue;
    const bool left = reached(part(rank).left, 1);  // asked before its calls are counted: it makes none later
    compare(rank);
    require_pace(rank, left);
  }
}

// Equal digests of call n say that all calls up to n were equal, so only the last one that both made is looked at.
void Watch::compare(int rank) {
  Peer& peer = peers_[static_cast<std::size_t>(rank)];
  const std::uint64_t common = std::min(mine().size(), part(rank).log.size());
  if (common == peer.agreed) return;
  const auto ours = mine().find(common);
  const auto theirs = part(rank).log.find(common);
  if (!ours || !theirs) return;  // one of the two ran far ahead; it is compared when the other has come closer
  if (ours->digest != theirs->digest) tell_difference(rank, peer.agreed, common);
  peer.agreed = common;
}

void Watch::tell_difference(int rank, std::uint64_t agreed, std::uint64_t differs) const {
  for (std::uint64_t number = agreed + 1; number <= differs; ++number) {
    const auto ours = mine().find(number);
    const auto theirs = part(rank).log.find(number);
    if (!ours || !theirs || ours->call == theirs->call) continue;
    const bool first = control_.rank() < rank;
    throw CommunicatorError(first ? disagreement(control_.rank(), ours->call, rank, theirs->call)
                                  : disagreement(rank, theirs->call, control_.rank(), ours->call));
  }
  throw CommunicatorError("ranks disagree: rank " + std::to_string(control_.rank()) + " and rank " +
                          std::to_string(rank) + " made different calls between call " + std::to_string(agreed) +
                          " and call " + std::to_string(differs) +
                          ", too many to remember which. Every rank must call the same collectives in the same order");
}

void Watch::require_pace(int rank, bool left) {
  Peer& peer = peers_[static_cast<std::size_t>(rank)];
  const std::uint64_t theirs = part(rank).log.size();
  const auto now = Clock::now();
  const bool behind = theirs < mine().size();
  if (!behind || theirs != peer.seen || peer.moved == Clock::time_point{}) peer.moved = now;
  peer.seen = theirs;
  if (!behind) return;
  const auto waits = [&] { return "rank " + std::to_string(control_.rank()) + " waited for " + call_text(theirs + 1); };
  if (left) {
    throw PeerLost(rank,
                   "rank " + std::to_string(rank) + " has left (its communicator was destroyed) while " + waits());
  }
  if (now - peer.moved > control_.timeout()) {
    throw CommunicatorError(waits() + ", in vain for " + std::to_string(control_.timeout().count()) +
                            " ms (the communicator's timeout); not arrived: rank " + std::to_string(rank) +
                            ", which has made " + std::to_string(theirs) +
                            " calls. See what it does; if it is only slow, give a longer timeout");
  }
}

std::string Watch::call_text(std::uint64_t number) const {
  const auto record = mine().find(number);
  return record ? to_text(record->call) : "call " + std::to_string(number);
}

}  // namespace aliquot
