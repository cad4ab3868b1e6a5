/// \file
/// The kernel by which streams of different ranks meet.
#pragma once

#include <cstddef>
#include <cstdint>

#include "aliquot/device.h"

namespace aliquot::cuda {

/// Per channel and rank, two counters in memory of each rank that all ranks map; zeroed before the first meeting.
/// Whoever meets counts by itself, on the device: no number comes from the host, and a graph can be replayed.
struct MeetingCounters {
  std::uint32_t* first;
  int world_size;

  static constexpr std::size_t bytes(int channels, int world_size) {
    return 2 * static_cast<std::size_t>(channels) * static_cast<std::size_t>(world_size) * sizeof(std::uint32_t);
  }

  /// To which meeting with this memory's owner `rank` has come; written by `rank`.
  constexpr std::uint32_t* arrived(int channel, int rank) const { return first + 2 * channel * world_size + rank; }
  /// To which meeting with `rank` the owner has come; of use to nobody else.
  constexpr std::uint32_t* counted(int channel, int rank) const { return arrived(channel, rank) + world_size; }
};

/// One rank's part of a meeting. Pointers are what its device can use.
struct Meeting {
  std::uint32_t* const* counters;  ///< MeetingCounters::first of every rank
  int rank;
  int world_size;
  int channel;
  int begin, end;                ///< it is with these ranks, whether this one is among them or not
  std::uint32_t* late;           ///< by rank, on the host: to which meeting it is waited for since long, or 0
  const std::uint32_t* aborted;  ///< on the host: not 0 ends all waits
};

/// `stream` goes on when all ranks of the meeting have come to it, or it was aborted. Some microseconds after the last.
/// \throws DeviceError
void meet(const Meeting& meeting, Stream stream);

}  // namespace aliquot::cuda
