/// \file
/// For what must not be waited for.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>

namespace aliquot {

/// Ends the process with code 70 (EX_SOFTWARE), with a word to stderr, if it still exists after `limit`. It has a
/// thread of its own, which needs nobody's lock.
class Watchdog {
 public:
  static constexpr int exit_code = 70;

  /// `what` completes "... has not ended".
  Watchdog(std::chrono::milliseconds limit, std::string what);
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  ~Watchdog() = default;

 private:
  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::jthread thread_;  // the last: it uses the others
};

}  // namespace aliquot
