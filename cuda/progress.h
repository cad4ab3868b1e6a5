/// \file
/// Whether a device gets on with what it was given.
#pragma once

#include <atomic>
#include <chrono>
#include <mutex>

#include "aliquot/streams.h"

namespace aliquot::cuda {

/// Whether what `stream` is given goes into a graph.
bool capturing(Stream stream);

/// One thread marks what it gives to a device; another may ask at any time, and never waits for the first, which may
/// itself be stuck behind a full queue.
class Progress {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Progress(Device device) : last_(device), oldest_(device) {}

  /// All that `stream` was given so far counts. Work that is being captured into a graph does not.
  void mark(Stream stream);
  /// `stream` goes on behind all that was marked: for work that comes on several streams, and must be done in order.
  /// Not where `stream` is being captured into a graph: whoever does that sees to it.
  void precede(Stream stream);
  /// For how long some of it has been outstanding; 0 if nothing is. \throws DeviceError if the device met an error
  Clock::duration age();
  /// True if nothing is outstanding. Not while another thread marks. \throws DeviceError if the device met an error
  bool done() const { return last_.done(); }

 private:
  static constexpr Clock::time_point never{};

  std::mutex mutex_;
  Event last_;                                    ///< passes when everything is done
  Event oldest_;                                  ///< recorded once the one before has passed
  std::atomic<Clock::time_point> since_ = never;  ///< when oldest_ was recorded
};

}  // namespace aliquot::cuda
