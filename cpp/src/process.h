/// \file
/// Processes: which host they run on, and whether they still live.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>

namespace aliquot {

/// Where a process runs. Two processes can share memory through /proc where all but `pid` agree.
struct ProcessIdentity {
  std::string host;           ///< its name, for messages
  std::string boot;           ///< one boot of one kernel
  std::string pid_namespace;  ///< one container
  uid_t user = 0;
  pid_t pid = 0;

  static ProcessIdentity of_this_process();
  /// \throws CommunicatorError if `text` is not what to_text() made
  static ProcessIdentity from_text(const std::string& text);
  std::string to_text() const;
};

/// A process, watched. Does not confuse it with a later one of the same number.
class Process {
 public:
  /// One that is no more counts as ended. \throws CommunicatorError if processes can't be watched here
  explicit Process(pid_t pid);
  Process(Process&& other) noexcept : pid_(other.pid_), descriptor_(other.descriptor_) { other.descriptor_ = -1; }
  Process& operator=(Process&&) = delete;
  ~Process();

  pid_t pid() const noexcept { return pid_; }
  /// True once it has ended, even if its parent has not yet reaped it; waits up to `patience` for that.
  bool ended(std::chrono::milliseconds patience = {}) const noexcept;

 private:
  pid_t pid_;
  int descriptor_;
};

}  // namespace aliquot
