#include "waiter.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <string>
#include <string_view>

#include "aliquot/error.h"
#include "characters.h"
#include "observation.h"
#include "rank.h"

namespace aliquot {
namespace {

// How often a sleeping rank looks whether there is still something to wait for.
constexpr std::chrono::milliseconds slice = interrupt_interval;
// Longer than most partners are late, shorter than a sleep and a wake-up cost.
constexpr std::chrono::microseconds spin_time(20);
// A killed process closes its files some time before it is seen to have ended.
constexpr std::chrono::milliseconds dying_time(1000);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Ranks may outnumber cores: whoever spins gives way.
bool spin(const std::function<bool()>& ready) {
  const auto end = std::chrono::steady_clock::now() + spin_time;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      pause();
    }
    sched_yield();
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace

std::function<void()>& interrupt_check() {
  static std::function<void()> check;
  return check;
}

Waiter::Waiter(SharedWorld world, int rank, std::vector<std::optional<Process>> peers,
               std::chrono::milliseconds timeout, RankNames names)
    : world_(world), rank_(rank), peers_(std::move(peers)), timeout_(timeout), names_(names) {}

void Waiter::know(const PeerMemory& memory) {
  std::erase_if(regions_, [](const Region& region) { return region.base.expired(); });
  if (memory.part_bytes > 0) regions_.push_back({memory.base, memory.part_bytes});
}

void Waiter::wait(const std::function<bool()>& ready, const Sentence& what) {
  require_intact();
  if (!ready() && !spin(ready)) sleep(ready, what);
}

void Waiter::sleep(const std::function<bool()>& ready, const Sentence& what) {
  const auto deadline = Clock::now() + timeout_;
  const auto ready_or_failed = [&] { return world_.failure().happened() || ready(); };
  auto next_look = std::min(Clock::now() + slice, deadline);
  for (;;) {
    const auto rest = std::chrono::ceil<std::chrono::milliseconds>(next_look - Clock::now());
    if (world_.doorbell().sleep(ready_or_failed, std::max(rest, std::chrono::milliseconds(0)))) return require_intact();
    if (Clock::now() < next_look) continue;
    check_interrupt(what);
    if (ready_or_lost(ready, what)) return;
    if (Clock::now() >= deadline) return pass_deadline(ready, what);
    next_look = std::min(Clock::now() + slice, deadline);
  }
}

// The peers are looked at before `ready` is asked a last time: one that has gone had posted whatever it ever will, so
// what is missing then stays missing.
bool Waiter::ready_or_lost(const std::function<bool()>& ready, const Sentence& what) {
  const std::uint32_t rings = world_.doorbell().heard();
  const std::vector<Presence> all = presences();
  const Observation seen = observe(ready);
  if (seen.ready) return true;

  for (std::size_t r = 0; r < all.size(); ++r) {
    if (all[r] == Presence::killed) lose(static_cast<int>(r), " is gone", what);
  }
  for (const int r : owners(seen.unreached)) {
    if (all[static_cast<std::size_t>(r)] == Presence::left) {
      lose(r, " has left (its communicator was destroyed)", what);
    }
  }
  if (!seen.unreached.empty()) require_movement(rings, what);
  return false;
}

// Whoever has asked in vain and heard nothing since asks in vain again: signals come with a ring. If that holds for
// all, none ever will come. Ranks that leave, abort or stop waiting ring too.
void Waiter::require_movement(std::uint32_t rings, const Sentence& what) {
  RankState& mine = world_.state(rank_);
  std::atomic_ref still_since(mine.still_since);
  if (still_since != rings) {
    const std::string text = what();
    mine.waits_for = {};
    std::ranges::copy(beginning_of(text, mine.waits_for.size() - 1), mine.waits_for.begin());
    still_since = rings;
  }
  if (!nobody_moves(rings)) return;
  fail(-1,
       "ranks disagree, and wait for each other: " + all_waits() + ". Every rank must do the same in the same order");
  require_intact();
}

bool Waiter::nobody_moves(std::uint32_t rings) const {
  for (std::size_t r = 0; r < peers_.size(); ++r) {
    RankState& state = world_.state(static_cast<int>(r));
    const bool waits = std::atomic_ref(state.waiting).load() != 0 && std::atomic_ref(state.still_since).load() == rings;
    if (!waits && std::atomic_ref(state.left).load() == 0) return false;
  }
  return world_.doorbell().heard() == rings;
}

std::string Waiter::all_waits() const {
  std::string text;
  std::set<std::string_view> told;
  for (int r = 0; r < static_cast<int>(peers_.size()); ++r) {
    const RankState& state = world_.state(r);
    if (presence(r) == Presence::left || !told.insert(state.waits_for.data()).second) continue;
    text += (text.empty() ? "" : ", ") + named(r) + " waits for " + state.waits_for.data();
  }
  return text;
}

void Waiter::look() {
  require_intact();
  const std::vector<Presence> all = presences();
  const auto killed = std::find(all.begin(), all.end(), Presence::killed);
  if (killed != all.end()) lose(static_cast<int>(killed - all.begin()), " is gone", [] { return "its peers"; });
}

std::vector<Waiter::Presence> Waiter::presences() const {
  std::vector<Presence> all(peers_.size());
  for (std::size_t r = 0; r < all.size(); ++r) all[r] = presence(static_cast<int>(r));
  return all;
}

void Waiter::lose(int lost, const char* how, const Sentence& what) {
  const std::string text = named_with_pid(lost) + how + " while " + named(rank_) + " waited for " + what();
  fail(names_.of(lost), text);
  require_intact();
  throw PeerLost(names_.of(lost), text);
}

void Waiter::pass_deadline(const std::function<bool()>& ready, const Sentence& what) {
  const Observation seen = observe(ready);
  if (seen.ready) return;
  std::vector<int> missing = owners(seen.unreached);
  for (int& rank : missing) rank = names_.of(rank);
  const std::string text = named(rank_) + " waited for " + what() + ", in vain for " +
                           std::to_string(timeout_.count()) +
                           " ms (the communicator's timeout); not arrived: " + list_of(missing) +
                           ". See what these ranks do; if they are only slow, give a longer timeout";
  fail(-1, text);
  require_intact();
  throw CommunicatorError(text);
}

void Waiter::check_interrupt(const Sentence& what) {
  if (!interrupt_check()) return;
  try {
    interrupt_check()();
  } catch (...) {
    fail(-1, named(rank_) + " was interrupted while it waited for " + what());
    throw;
  }
}

void Waiter::rule_out_death(int peer, const Sentence& what) {
  const auto& process = peers_[static_cast<std::size_t>(peer)];
  if (process && process->ended(dying_time)) ready_or_lost([] { return false; }, what);
}

void Waiter::fail(int named_lost, std::string_view text) noexcept {
  world_.failure().record(named_lost, text);
  world_.doorbell().ring();
}

Waiter::Presence Waiter::presence(int rank) const {
  const auto& process = peers_[static_cast<std::size_t>(rank)];
  const bool ended = process && process->ended();  // asked first: who has ended writes no more
  if (std::atomic_ref(world_.state(rank).left).load(std::memory_order_acquire) != 0) return Presence::left;
  return ended ? Presence::killed : Presence::here;
}

std::vector<int> Waiter::owners(const std::vector<const Signal*>& signals) const {
  std::vector<int> ranks;
  for (const Signal* signal : signals) {
    for (const Region& region : regions_) {
      const auto base = region.base.lock();
      const auto offset = reinterpret_cast<std::uintptr_t>(signal) - reinterpret_cast<std::uintptr_t>(base.get());
      if (base && offset < region.part_bytes * peers_.size())
        ranks.push_back(static_cast<int>(offset / region.part_bytes));
    }
  }
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  return ranks;
}

std::string Waiter::named(int rank) const { return "rank " + std::to_string(names_.of(rank)); }

std::string Waiter::named_with_pid(int rank) const {
  const auto& process = peers_[static_cast<std::size_t>(rank)];
  return named(rank) + (process ? " (pid " + std::to_string(process->pid()) + ")" : "");
}

}  // namespace aliquot
