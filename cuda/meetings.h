/// \file
/// The meetings of one rank's streams with those of its peers.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "aliquot/memory_resource.h"
#include "cuda/meet.h"

namespace aliquot::cuda {

/// Ranks, counted from 0.
struct Ranks {
  int begin;
  int end;
};

class Meetings {
 public:
  /// \param counters  MeetingCounters::first of every rank, as this rank's device addresses it
  Meetings(Device device, int rank, int channels, std::vector<std::uint32_t*> counters);

  /// `stream` goes on when the streams of `ranks` have come to the same meeting, or after abort(). Each pair of ranks
  /// counts its own meetings on a channel. \throws DeviceError
  void meet(int channel, Ranks ranks, Stream stream);

  /// Waiting streams go on at once, and none waits any more. Safe from any thread.
  void abort() noexcept;
  /// \throws CommunicatorError if a stream has waited for the same meeting for longer than `timeout`, and names the
  /// ranks that have not come. Asked again and again, by one thread: it sees as much of time as it is asked.
  /// \param name_of  says what is done on a channel
  void require_pace(std::chrono::milliseconds timeout, const std::function<std::string(int)>& name_of);

 private:
  using Clock = std::chrono::steady_clock;
  struct Wait {
    std::uint32_t number = 0;
    Clock::time_point since;
  };

  std::uint32_t* late(int channel) const;
  [[noreturn]] void tell_late(int channel, std::chrono::milliseconds timeout, const std::string& what) const;

  int rank_;
  int world_size_;
  std::unique_ptr<MemoryResource> pinned_;
  std::unique_ptr<MemoryResource> memory_;
  Buffer words_;  ///< on the host: whether they are aborted; then by channel and rank, Meeting::late
  Buffer table_;  ///< on the device: `counters`
  std::vector<Wait> waits_;
};

}  // namespace aliquot::cuda
