/// \file
/// How much of what it was given a device has still to do.
#pragma once

#include <array>
#include <cstddef>

#include "aliquot/streams.h"

namespace aliquot::cuda {

/// Counts what one thread gives to a device, up to a depth. A host that stays within it never finds the device's queue
/// of launches full by its own work, and so never waits inside a launch.
class Backlog {
 public:
  static constexpr std::size_t depth = 64;

  explicit Backlog(Device device);

  /// False while `depth` of what was marked are outstanding. \throws DeviceError if the device met an error
  bool has_room() const { return marks_[next_ % depth].done(); }
  /// All that `stream` was given so far is one more. Not while it is being captured into a graph.
  void mark(Stream stream) { marks_[next_++ % depth].record(stream); }

 private:
  std::array<Event, depth> marks_;
  std::size_t next_ = 0;
};

}  // namespace aliquot::cuda
