/// \file
/// What a rank of the transport `peer` shares with its peers on the device.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <vector>

#include "aliquot/memory_resource.h"
#include "cuda/meetings.h"
#include "cuda/peer_regions.h"

namespace aliquot::cuda {

/// What lies where in the memory that the transport takes for itself, the same on every rank:
/// [ counters | staging of queue 0 | staging of queue 1 | ... | workspace ], each staging in two halves.
class PeerWorld {
 public:
  static constexpr int staging_queues = 3;
  static constexpr std::size_t half_bytes = 8 << 20;

  /// Collective over `host`. \param channels  of the meetings
  PeerWorld(Communicator& host, Device device, int channels);

  PeerRegions& regions() { return regions_; }
  const PeerRegions& regions() const { return regions_; }
  Meetings& meetings() { return *meetings_; }
  /// Of this rank; regions() has that of its peers.
  std::byte* staging(int queue, std::size_t half) const;
  /// For sums: DeviceStatistics, then cuda::reduce's workspace, behind this many bytes.
  static constexpr std::size_t statistics_bytes = 256;
  std::byte* workspace() const { return staging(staging_queues, 0); }

 private:
  std::vector<std::uint32_t*> counters(const Communicator& host) const;

  std::unique_ptr<MemoryResource> memory_;
  std::size_t counter_bytes_;
  Buffer shared_;
  PeerRegions regions_;
  std::shared_ptr<void> registration_;
  std::unique_ptr<Meetings> meetings_;
};

}  // namespace aliquot::cuda
