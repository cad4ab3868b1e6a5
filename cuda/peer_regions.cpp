#include "cuda/peer_regions.h"

#include <unistd.h>

#include <algorithm>
#include <string>

#include "aliquot/error.h"
#include "cuda/device_mapping.h"
#include "descriptors.h"

namespace aliquot::cuda {
namespace {

/// What a rank brings. No bytes: nothing that can be mapped.
struct Offer {
  pid_t owner = 0;
  const std::byte* address = nullptr;  ///< within its own process
  std::size_t bytes = 0;
  std::size_t mapped_bytes = 0;
};

using Mapping = std::shared_ptr<DeviceMapping>;

/// Null unless `memory` is a whole piece.
Mapping piece_at(std::span<std::byte> memory) {
  Mapping piece = DeviceMapping::find(memory.data());
  return piece != nullptr && piece->memory().size() == memory.size() ? std::move(piece) : nullptr;
}

std::vector<Offer> exchange_offers(Communicator& host, const Mapping& piece) {
  Offer mine{getpid()};
  if (piece != nullptr) mine = {getpid(), piece->memory().data(), piece->memory().size(), piece->mapped_bytes()};
  std::vector<Offer> offers(static_cast<std::size_t>(host.world_size()));
  host.all_gather({"register", "memory"}, std::as_bytes(std::span(&mine, 1)),
                  std::as_writable_bytes(std::span(offers)).data());
  return offers;
}

void require_alike(const std::vector<Offer>& offers) {
  for (std::size_t rank = 0; rank < offers.size(); ++rank) {
    if (offers[rank].bytes == 0) {
      throw InvalidArgument("register_memory: rank " + std::to_string(rank) +
                            " gave memory that peers can't map; the transport peer registers whole pieces of its "
                            "registrable_memory()");
    }
    if (offers[rank].bytes != offers[0].bytes) {
      throw InvalidArgument("register_memory: rank " + std::to_string(rank) + " gave " +
                            std::to_string(offers[rank].bytes) + " bytes, rank 0 " + std::to_string(offers[0].bytes) +
                            "; give the same size on every rank");
    }
  }
}

// Within a process a peer's memory is used where it is. A second address for it would not do: what is written at one
// need not be seen at the other before the writer's kernel ends (CUDA programming guide, "Virtual Aliasing Support").
Mapping mapped(const Offer& offer, const Descriptor& file, Device device) {
  if (offer.owner != getpid()) return DeviceMapping::import(file, device, offer.bytes, offer.mapped_bytes);
  Mapping piece = DeviceMapping::find(offer.address);
  piece->grant(device);
  return piece;
}

std::vector<Mapping> map_all(Communicator& host, Device device, std::span<std::byte> memory) {
  const Mapping piece = piece_at(memory);
  const std::vector<Offer> offers = exchange_offers(host, piece);
  require_alike(offers);
  try {
    const std::vector<Descriptor> files = exchange_descriptors(host, piece->exported());
    std::vector<Mapping> mappings;
    for (std::size_t rank = 0; rank < offers.size(); ++rank) {
      mappings.push_back(mapped(offers[rank], files[rank], device));
    }
    host.barrier({"register", "mapped"});  // a piece that one rank maps is not given back by another
    return mappings;
  } catch (const std::exception& error) {
    host.abort(error.what());  // the others wait for this rank
    throw;
  }
}

}  // namespace

struct PeerRegions::Region {
  Region(PeerRegions& all, std::span<std::byte> own, std::vector<Mapping> by_rank)
      : regions(all), memory(own), mappings(std::move(by_rank)) {
    regions.insert(*this);
  }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  ~Region() { regions.remove(memory.data()); }

  static const std::byte* begin_of(const Region* region) { return region->memory.data(); }

  PeerRegions& regions;
  std::span<std::byte> memory;
  std::vector<Mapping> mappings;
};

std::shared_ptr<void> PeerRegions::add(Communicator& host, Device device, std::span<std::byte> memory) {
  return std::make_shared<Region>(*this, memory, map_all(host, device, memory));
}

std::byte* PeerRegions::find(int rank, const std::byte* own) const {
  const std::lock_guard lock(mutex_);
  const auto behind = std::ranges::upper_bound(regions_, own, {}, &Region::begin_of);
  if (behind == regions_.begin()) return nullptr;
  const Region& region = **std::prev(behind);
  const auto offset = static_cast<std::size_t>(own - region.memory.data());
  if (offset >= region.memory.size()) return nullptr;
  return region.mappings[static_cast<std::size_t>(rank)]->memory().data() + offset;
}

void PeerRegions::insert(const Region& region) {
  const std::lock_guard lock(mutex_);
  const auto place = std::ranges::upper_bound(regions_, Region::begin_of(&region), {}, &Region::begin_of);
  regions_.insert(place, &region);
}

void PeerRegions::remove(const std::byte* begin) {
  const std::lock_guard lock(mutex_);
  std::erase_if(regions_, [&](const Region* region) { return region->memory.data() == begin; });
}

}  // namespace aliquot::cuda
