/// \file
/// How long the host spends in a piece of code.
#pragma once

#include <chrono>

namespace aliquot::python {

/// Of all runs together, of which one must not lie within another.
class Clock {
 public:
  void start() { start_ = Time::now(); }
  void stop() { seconds_ += std::chrono::duration<double>(Time::now() - start_).count(); }
  double seconds() const { return seconds_; }

 private:
  using Time = std::chrono::steady_clock;

  Time::time_point start_;
  double seconds_ = 0;
};

/// A clock runs while it lives.
class Running {
 public:
  explicit Running(Clock& clock) : clock_(clock) { clock_.start(); }
  ~Running() { clock_.stop(); }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

 private:
  Clock& clock_;
};

}  // namespace aliquot::python
