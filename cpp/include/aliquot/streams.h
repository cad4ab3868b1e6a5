/// \file
/// Streams and events of a device, as owners; and what is done on a stream. On Device cpu there is one stream, the
/// caller: the owners hold nothing, and everything is done when its call returns.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "aliquot/device.h"

namespace aliquot {

/// Makes `device` the calling thread's current one, and the one before current again in the end.
class DeviceGuard {
 public:
  /// \throws DeviceError if there is no such device.
  explicit DeviceGuard(Device device);
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  ~DeviceGuard();

 private:
  [[maybe_unused]] int previous_ = -1;  ///< none to go back to
};

/// Whose work a device takes first, where it has the choice.
enum class Priority { low, high };

/// Sole owner of a stream that waits for no other, the default stream included. The destructor does not wait for the
/// work on it, and does no harm once the runtime is unloaded.
class OwnedStream {
 public:
  OwnedStream() = default;
  /// \throws DeviceError
  OwnedStream(Device device, Priority priority);
  OwnedStream(OwnedStream&& other) noexcept : device_(other.device_), handle_(std::exchange(other.handle_, nullptr)) {}
  OwnedStream& operator=(OwnedStream&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~OwnedStream();

  Device device() const noexcept { return device_; }
  Stream get() const noexcept { return {handle_}; }

 private:
  Device device_;
  void* handle_ = nullptr;
};

/// A point in a stream that others can wait for. One that was never recorded has passed.
class Event {
 public:
  Event() = default;
  /// \throws DeviceError
  explicit Event(Device device);
  Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Event();

  /// The point is now behind everything given to `stream` (of this event's device) so far. \throws DeviceError
  void record(Stream stream);
  /// `stream` (of any device) does not go on before the point has passed; the host does not wait. \throws DeviceError
  void block(Stream stream) const;
  /// True if the point has passed. \throws DeviceError, also for an error of earlier work on the device
  bool done() const;
  /// The host waits for the point. \throws DeviceError, as done()
  void synchronize() const;

 private:
  void* handle_ = nullptr;
};

/// A point in a stream and the time at which it passes: for measuring, as it costs more than an Event. On CPUs it
/// passes when it is recorded.
class TimedEvent {
 public:
  TimedEvent() = default;
  /// \throws DeviceError
  explicit TimedEvent(Device device);
  TimedEvent(TimedEvent&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)), passed_(other.passed_) {}
  TimedEvent& operator=(TimedEvent&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(passed_, other.passed_);
    return *this;
  }
  ~TimedEvent();

  /// As Event::record. \throws DeviceError
  void record(Stream stream);
  /// From `earlier`, on any stream of the same device, to this point; negative if this one passed first. Both have been
  /// recorded; the host waits for them. \throws DeviceError, as Event::done()
  double seconds_since(const TimedEvent& earlier) const;

 private:
  void* handle_ = nullptr;
  std::chrono::steady_clock::time_point passed_;  ///< on CPUs
};

/// `to` = `from`, between device and host memory in any direction. Returns at once where both are device or pinned
/// memory; other host memory may be read before the return. \throws DeviceError
void copy_async(void* to, const void* from, std::size_t bytes, Stream stream);

/// Sets every byte. \throws DeviceError
void fill_async(void* data, std::uint8_t byte, std::size_t bytes, Stream stream);

/// The host waits for all work given to `stream` so far. \throws DeviceError, also for an error of that work
void synchronize(Stream stream);

}  // namespace aliquot
