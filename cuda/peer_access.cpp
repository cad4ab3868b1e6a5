#include "cuda/peer_access.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "aliquot/error.h"
#include "aliquot/transports.h"
#include "cuda/device_mapping.h"
#include "cuda/gpu_identity.h"
#include "cuda/launch.h"

namespace aliquot {
namespace cuda {
namespace {

/// What keeps a rank from mapping its peers; empty if nothing does. A sentence of fixed length, to be gathered.
using Objection = std::array<char, 256>;

std::string name_of(Device device) { return "cuda:" + std::to_string(device.index); }

/// The number by which this process knows a GPU; -1 if it doesn't.
int index_of(const Uuid& wanted) {
  for (int index = 0; index < cuda_device_count(); ++index) {
    if (uuid_of({Device::Type::cuda, index}) == wanted) return index;
  }
  return -1;
}

std::string objection_to(int rank, Device device, int peer, const Uuid& of_peer) {
  const std::string mine = name_of(device) + " of rank " + std::to_string(rank);
  const std::string theirs = "the GPU of rank " + std::to_string(peer);
  const int index = index_of(of_peer);
  if (index < 0) {
    return mine + " and " + theirs + ": rank " + std::to_string(rank) +
           " can't see that GPU; let every rank see all of them (CUDA_VISIBLE_DEVICES)";
  }
  int can = 1;
  if (index != device.index) check(cudaDeviceCanAccessPeer(&can, device.index, index), "say which devices are peers");
  if (can != 0) return "";
  return mine + " can't map the memory of " + theirs + " (" + name_of({Device::Type::cuda, index}) +
         " there): no NVLink or PCIe path between them allows it";
}

std::string objection_of(Communicator& control, Device device, const std::vector<Uuid>& all) {
  const auto without = std::ranges::find(all, Uuid{});
  if (without != all.end()) return "rank " + std::to_string(without - all.begin()) + " has no GPU to join with";
  if (!supports_exported_memory(device)) {
    return name_of(device) + " of rank " + std::to_string(control.rank()) +
           " can't export memory (virtual memory management with file descriptors)";
  }
  for (int peer = 0; peer < control.world_size(); ++peer) {
    const std::string objection = objection_to(control.rank(), device, peer, all[static_cast<std::size_t>(peer)]);
    if (!objection.empty()) return objection;
  }
  return "";
}

/// Zeros for what is no GPU of this process, so that every rank goes on to the next collective.
Uuid uuid_or_zeros(Device device) {
  try {
    return uuid_of(device);
  } catch (const Error&) {
    return {};
  }
}

/// The same on every rank: the objection of the first rank that has one, or nothing.
std::string first_objection(Communicator& control, Device device) {
  const std::vector<Uuid> uuids = uuids_of_ranks(control, uuid_or_zeros(device));
  Objection mine{};
  std::string text;
  try {
    text = objection_of(control, device, uuids);
  } catch (const Error& error) {
    text = error.what();
  }
  std::copy_n(text.begin(), std::min(text.size(), mine.size() - 1), mine.begin());
  std::vector<Objection> all(uuids.size());
  control.all_gather({"connect", "peers"}, std::as_bytes(std::span(mine)),
                     std::as_writable_bytes(std::span(all)).data());
  const auto first = std::ranges::find_if(all, [](const Objection& objection) { return objection[0] != '\0'; });
  return first == all.end() ? "" : first->data();
}

}  // namespace

void require_peer_access(Communicator& control, Device device) {
  const std::string objection = first_objection(control, device);
  if (objection.empty()) return;
  throw InvalidArgument("the transport peer joins GPUs that map each other's memory: " + objection +
                        ". Use the transport nccl");
}

}  // namespace cuda

bool can_map_peers(Communicator& control, Device device) {
  return cuda::first_objection(control.host(), device).empty();
}

}  // namespace aliquot
