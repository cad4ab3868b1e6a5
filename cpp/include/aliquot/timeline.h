/// \file
/// When things happened on the streams of a rank, and which of it held the model's computation up.
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "aliquot/streams.h"

namespace aliquot {

/// What a slice of time is spent on.
enum class Activity {
  gather,  ///< bytes: copied from peers
  pack,    ///< gradients into an outbox; bytes: of the full unit
  reduce,  ///< bytes: of all ranks' parts that are summed
  step,    ///< bytes: of one moment of what is updated
};
std::string_view name_of(Activity activity) noexcept;

/// What it means to the caller's stream, on which the model computes.
enum class Hold {
  none,  ///< it is on a stream beside
  work,  ///< the caller's stream does it
  wait,  ///< the caller's stream waits for another
};

/// Times are seconds since the timeline was made.
struct Slice {
  Activity activity;
  Hold hold;
  std::string name;  ///< of a unit, or of what is not one unit's
  std::size_t bytes;
  double begin;
  double end;
};

/// Slices of time, marked on the streams while they pass, by any thread, and read once all is over. On CPUs there is
/// one stream, so what is said to be beside the caller is its work.
class Timeline {
 public:
  using Clock = std::chrono::steady_clock;

  /// \throws DeviceError
  explicit Timeline(Device device);

  /// When it was made.
  Clock::time_point origin() const { return origin_; }
  bool on_device() const { return device_.type != Device::Type::cpu; }
  /// In the order in which they began on the host; those whose scope is not over are left out. The host waits for
  /// all. \throws DeviceError
  std::vector<Slice> slices() const;

 private:
  friend class TimedScope;
  struct Mark {
    Slice slice;
    TimedEvent begin;
    TimedEvent end;
    bool ended = false;
  };

  Mark& add();
  Mark& begin(Activity activity, Hold hold, std::string_view name, std::size_t bytes, Stream stream);

  Device device_;
  TimedEvent start_;
  Clock::time_point origin_;
  std::mutex mutex_;  ///< of the deque; a mark is its maker's
  std::deque<Mark> marks_;
};

/// Marks what is given to `stream` in a scope as a slice of `timeline`; does nothing where that is null.
class TimedScope {
 public:
  /// \throws DeviceError
  TimedScope(Timeline* timeline, Activity activity, Hold hold, std::string_view name, std::size_t bytes, Stream stream)
      : mark_(timeline == nullptr ? nullptr : &timeline->begin(activity, hold, name, bytes, stream)), stream_(stream) {}
  TimedScope(const TimedScope&) = delete;
  TimedScope& operator=(const TimedScope&) = delete;
  ~TimedScope() {
    if (mark_ != nullptr) end();
  }

 private:
  void end() noexcept;

  Timeline::Mark* mark_;
  Stream stream_;
};

/// event.block(stream), and how long that holds the stream up as a slice of `timeline` if there is one. On CPUs events
/// have always passed, and there is no slice.
void block(const Event& event, Stream stream, Timeline* timeline, Activity activity, std::string_view name);

}  // namespace aliquot
