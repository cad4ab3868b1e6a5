#include "aliquot/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "aliquot/error.h"

namespace aliquot {
namespace {

thread_local bool inside_body = false;

/// One call of parallel_for, on its caller's stack. While others help, the pool's mutex guards all but `next`.
struct Job {
  const std::function<void(std::size_t, std::size_t)>& body;
  const std::size_t count;
  const std::size_t grain;
  std::atomic<std::size_t> next = 0;   ///< the first element that nobody has taken
  std::exception_ptr error = nullptr;  ///< the first that a body threw
  int helpers = 0;                     ///< threads of the pool inside run()
  Job* below = nullptr;                ///< in the pool's stack of jobs

  /// Runs pieces until none is left; after an exception, which it returns, none is left for anybody.
  std::exception_ptr run() noexcept {
    const bool was_inside = std::exchange(inside_body, true);
    std::exception_ptr thrown;
    try {
      for (std::size_t begin; (begin = next.fetch_add(grain, std::memory_order_relaxed)) < count;) {
        body(begin, begin + std::min(grain, count - begin));
      }
    } catch (...) {
      next.store(count, std::memory_order_relaxed);
      thrown = std::current_exception();
    }
    inside_body = was_inside;
    return thrown;
  }
};

/// Threads that help whoever has a job. A caller never waits for a thread that has not begun its job, and a body that
/// runs here never waits for another body, so callers cannot block one another.
class Pool {
 public:
  void run(Job& job, int most_helpers) {
    offer(job, most_helpers);
    std::exception_ptr thrown = job.run();
    std::unique_lock lock(mutex_);
    withdraw(job);
    finished_.wait(lock, [&] { return job.helpers == 0; });
    if (!job.error) job.error = thrown;
  }

 private:
  void offer(Job& job, int most_helpers) {
    std::lock_guard lock(mutex_);
    most_helpers_ = most_helpers;
    while (threads_ < most_helpers && start_thread(threads_)) ++threads_;
    job.below = std::exchange(top_, &job);
    offered_.notify_all();
  }

  void withdraw(Job& job) {
    Job** place = &top_;
    while (*place != nullptr && *place != &job) place = &(*place)->below;
    if (*place == &job) *place = job.below;
  }

  /// False where the system has no thread left: the caller's own work is then all there is.
  bool start_thread(int index) {
    try {
      std::thread([this, index] { help(index); }).detach();
      return true;
    } catch (const std::system_error&) {
      return false;
    }
  }

  [[noreturn]] void help(int index) {
    std::unique_lock lock(mutex_);
    for (;;) {
      offered_.wait(lock, [&] { return top_ != nullptr && index < most_helpers_; });
      Job& job = *top_;
      ++job.helpers;
      lock.unlock();
      std::exception_ptr thrown = job.run();
      lock.lock();
      withdraw(job);
      if (!job.error) job.error = std::move(thrown);
      if (--job.helpers == 0) finished_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable offered_;
  std::condition_variable finished_;
  Job* top_ = nullptr;
  int threads_ = 0;
  int most_helpers_ = 0;
};

/// The process's pool. Never destroyed, since its threads outlive main(). A forked child has none of its parent's
/// threads, and may have been forked while the mutex was held: it starts with a new pool in the same place.
Pool& pool() {
  alignas(Pool) static unsigned char place[sizeof(Pool)];
  static Pool* const pool = [] {
    pthread_atfork(nullptr, nullptr, [] { new (place) Pool; });
    return new (place) Pool;
  }();
  return *pool;
}

int cores_of_affinity_mask() {
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) return CPU_COUNT(&mask);
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

int initial_thread_count() {
  const char* set = std::getenv("OMP_NUM_THREADS");  // may be a list, one number per level of nesting
  const long count = set == nullptr ? 0 : std::strtol(set, nullptr, 10);
  return count >= 1 && count <= 4096 ? static_cast<int>(count) : cores_of_affinity_mask();
}

std::atomic<int>& current_thread_count() noexcept {
  static std::atomic<int> count = initial_thread_count();
  return count;
}

}  // namespace

int thread_count() noexcept { return current_thread_count().load(std::memory_order_relaxed); }

void set_thread_count(int count) {
  if (count < 1) throw InvalidArgument("set_thread_count: " + std::to_string(count) + " threads; give 1 or more");
  current_thread_count() = count;
}

void parallel_for(std::size_t count, std::size_t grain, const std::function<void(std::size_t, std::size_t)>& body) {
  if (grain == 0) throw InvalidArgument("parallel_for: grain is 0; give the elements of a piece, 1 or more");
  Job job{body, count, std::min(grain, std::max<std::size_t>(count, 1))};
  const int threads = thread_count();
  if (threads == 1 || inside_body || count <= grain) {
    job.error = job.run();
  } else {
    pool().run(job, threads - 1);
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace aliquot
