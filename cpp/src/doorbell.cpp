#include "doorbell.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>

namespace aliquot {
namespace {

// Not std::atomic::wait: that one assumes that all who wait share an address space, and knows no time limit.
void futex_wait(std::uint32_t* word, std::uint32_t expected, std::chrono::milliseconds longest) {
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(longest);
  const timespec limit{.tv_sec = seconds.count(), .tv_nsec = std::chrono::nanoseconds(longest - seconds).count()};
  syscall(SYS_futex, word, FUTEX_WAIT, expected, &limit, nullptr, 0);
}

void futex_wake_all(std::uint32_t* word) { syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0); }

class CountedIn {
 public:
  explicit CountedIn(std::uint32_t& sleepers) : sleepers_(sleepers) { sleepers_.fetch_add(1); }
  ~CountedIn() { sleepers_.fetch_sub(1); }
  CountedIn(const CountedIn&) = delete;
  CountedIn& operator=(const CountedIn&) = delete;

 private:
  std::atomic_ref<std::uint32_t> sleepers_;
};

}  // namespace

// No ring is lost: a sleeper counts itself in, reads `rings`, then asks ready(); a ringer changes `rings`, then reads
// the count. If the sleeper read the old `rings`, the ringer sees it counted and wakes it (or the futex finds `rings`
// changed); if it read the new one, ready() sees what was written before the ring.
void Doorbell::ring() noexcept {
  std::atomic_ref(rings).fetch_add(1);
  if (std::atomic_ref(sleepers).load() != 0) futex_wake_all(&rings);
}

std::uint32_t Doorbell::heard() const noexcept { return std::atomic_ref(const_cast<std::uint32_t&>(rings)).load(); }

bool Doorbell::sleep(const std::function<bool()>& ready, std::chrono::milliseconds longest) {
  const CountedIn counted(sleepers);
  const std::uint32_t before = heard();
  if (ready()) return true;
  futex_wait(&rings, before, longest);
  return ready();
}

}  // namespace aliquot
