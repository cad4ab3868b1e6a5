#include "cuda/peer_world.h"

#include "aliquot/device_kernels.h"
#include "cuda/registrable_memory.h"

namespace aliquot::cuda {
namespace {

std::size_t aligned(std::size_t bytes) { return (bytes + 511) / 512 * 512; }

}  // namespace

PeerWorld::PeerWorld(Communicator& host, Device device, int channels)
    : memory_(registrable_memory(device)), counter_bytes_(aligned(MeetingCounters::bytes(channels, host.world_size()))),
      shared_(*memory_, counter_bytes_ + 2 * staging_queues * half_bytes + statistics_bytes + reduce_workspace_bytes()),
      registration_(regions_.add(host, device, {shared_.data(), shared_.bytes()})),
      meetings_(std::make_unique<Meetings>(device, host.rank(), channels, counters(host))) {}

std::vector<std::uint32_t*> PeerWorld::counters(const Communicator& host) const {
  std::vector<std::uint32_t*> all;
  for (int rank = 0; rank < host.world_size(); ++rank) {
    all.push_back(reinterpret_cast<std::uint32_t*>(regions_.find(rank, shared_.data())));
  }
  return all;
}

std::byte* PeerWorld::staging(int queue, std::size_t half) const {
  return shared_.data() + counter_bytes_ + (2 * static_cast<std::size_t>(queue) + half) * half_bytes;
}

}  // namespace aliquot::cuda
