#include "failure.h"

#include <algorithm>
#include <atomic>
#include <string>

#include "aliquot/error.h"
#include "characters.h"

namespace aliquot {
namespace {

enum : std::uint32_t { none, being_written, written };

}  // namespace

void Failure::record(int lost, std::string_view what) noexcept {
  std::uint32_t expected = none;
  if (!std::atomic_ref(state).compare_exchange_strong(expected, being_written)) return;
  lost_rank = lost;
  std::ranges::copy(beginning_of(what, text.size() - 1), text.begin());
  std::atomic_ref(state).store(written, std::memory_order_release);
}

bool Failure::happened() const noexcept {
  return std::atomic_ref(const_cast<std::uint32_t&>(state)).load(std::memory_order_acquire) == written;
}

void Failure::raise() const {
  if (!happened()) return;
  const std::string message(text.data());
  if (lost_rank >= 0) throw PeerLost(lost_rank, message);
  throw CommunicatorError(message);
}

void Failure::raise_if_lost() const {
  if (happened() && lost_rank >= 0) raise();
}

}  // namespace aliquot
