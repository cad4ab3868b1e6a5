/// \file
/// TCP sockets that don't block, and that forks of this process don't keep open.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace aliquot {

/// Sole owner of an open file that a fork of this process does not have: there it is closed. So the end of the process
/// closes it, whatever it has forked. May be empty.
class UnsharedDescriptor {
 public:
  UnsharedDescriptor() = default;
  /// Owns what `open` returns, which is the number of a file just opened, or less than 0.
  explicit UnsharedDescriptor(const std::function<int()>& open);
  UnsharedDescriptor(UnsharedDescriptor&& other) noexcept;
  UnsharedDescriptor& operator=(UnsharedDescriptor&& other) noexcept;
  ~UnsharedDescriptor();

  explicit operator bool() const noexcept { return number_ >= 0; }
  int number() const noexcept { return number_; }

 private:
  int number_ = -1;
};

/// Where a socket listens, in numbers.
struct Endpoint {
  std::string address;
  std::string port;
};

/// Listens on a free port of the interface that `address` names; of loopback if there is none.
/// \throws CommunicatorError
UnsharedDescriptor listen_at(const std::string& address, int backlog);
Endpoint endpoint_of(const UnsharedDescriptor& listening);
/// Empty where nobody calls at present.
UnsharedDescriptor accept_from(const UnsharedDescriptor& listening);
/// \throws CommunicatorError if nobody answers within `patience`
UnsharedDescriptor connect_to(const Endpoint& endpoint, std::chrono::milliseconds patience);

/// A descriptor that poll finds readable after wake(), until clear().
class WakeUp {
 public:
  WakeUp();
  void wake() const noexcept;  // async-signal-safe
  void clear() const noexcept;
  int number() const noexcept { return descriptor_.number(); }

 private:
  UnsharedDescriptor descriptor_;
};

}  // namespace aliquot
