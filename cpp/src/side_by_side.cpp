#include "side_by_side.h"

#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace aliquot {
namespace {

/// Hands out numbers in order, until one has failed.
class Numbers {
 public:
  explicit Numbers(std::size_t count) : end_(count) {}

  /// False if none is left.
  bool take(std::size_t& number) {
    const std::lock_guard lock(mutex_);
    if (next_ >= end_) return false;
    number = next_++;
    return true;
  }

  /// Call it in a handler. All below `number` have been taken.
  void fail(std::size_t number) noexcept {
    const std::lock_guard lock(mutex_);
    next_ = end_;
    if (error_ && failed_ < number) return;
    failed_ = number;
    error_ = std::current_exception();
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::mutex mutex_;
  std::size_t next_ = 0;
  const std::size_t end_;
  std::size_t failed_ = 0;
  std::exception_ptr error_;
};

/// False where the system has no thread left.
bool start(std::vector<std::jthread>& threads, const std::function<void(std::size_t)>& work) {
  try {
    threads.emplace_back(work, threads.size() + 1);
    return true;
  } catch (const std::system_error&) {
    return false;
  }
}

}  // namespace

void side_by_side(std::size_t count, std::size_t workers, const std::function<void(std::size_t, std::size_t)>& body) {
  Numbers numbers(count);
  const std::function<void(std::size_t)> work = [&](std::size_t worker) {
    for (std::size_t number = 0; numbers.take(number);) {
      try {
        body(number, worker);
      } catch (...) {
        numbers.fail(number);
      }
    }
  };
  {
    std::vector<std::jthread> threads;
    while (threads.size() + 1 < workers && threads.size() + 1 < count && start(threads, work)) {
    }
    work(0);
  }
  numbers.rethrow();
}

}  // namespace aliquot
