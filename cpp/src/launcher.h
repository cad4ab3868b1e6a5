/// \file
/// A thread that gives work to a device in place of its caller.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace aliquot {

/// Does what it is given one after the other, in the order in which it was given. Given to and awaited by one thread.
class Launcher {
 public:
  using Work = std::function<void()>;

  /// `start` comes before all work, on the thread.
  explicit Launcher(Work start);
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;
  /// Does what it was given before.
  ~Launcher();

  /// Returns the number of this work, which is larger than those before. Never waits.
  std::uint64_t give(Work work);
  /// Returns when this work (or the last, if it is none yet) and all before it are done; at once within a work. Throws
  /// what the first work that failed threw, again and again: what was given behind it is not done. If the interrupt
  /// check throws, it is not over yet: drain() then.
  void await(std::uint64_t number);
  /// Returns when all is done, or not to be done.
  void drain() const noexcept;
  /// True if a work has failed.
  bool failed() const noexcept { return failed_; }
  /// True within a work.
  static bool here() noexcept;

 private:
  void run();
  void attempt(const Work& work);
  void await_next() const;
  Work next();
  void wait_for(std::uint64_t number) const;

  pid_t creator_;
  std::mutex mutex_;
  std::deque<Work> works_;
  std::atomic<std::uint64_t> given_ = 1;
  std::atomic<std::uint64_t> done_ = 0;
  std::atomic<bool> failed_ = false;
  std::exception_ptr failure_;  ///< written before failed_
  std::thread thread_;
};

}  // namespace aliquot
