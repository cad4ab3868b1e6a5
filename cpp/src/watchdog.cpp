#include "aliquot/watchdog.h"

#include <unistd.h>

namespace aliquot {
namespace {

[[noreturn]] void leave(const std::string& what, std::chrono::milliseconds limit) {
  const std::string text = "aliquot: " + what + " has not ended within " + std::to_string(limit.count()) +
                           " ms; the process leaves with code " + std::to_string(Watchdog::exit_code) + "\n";
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text.data(), text.size());
  _exit(Watchdog::exit_code);
}

}  // namespace

Watchdog::Watchdog(std::chrono::milliseconds limit, std::string what)
    : thread_([this, limit, what = std::move(what)](const std::stop_token& stop) {
        std::unique_lock lock(mutex_);
        wake_.wait_for(lock, stop, limit, [] { return false; });
        if (!stop.stop_requested()) leave(what, limit);
      }) {}

}  // namespace aliquot
