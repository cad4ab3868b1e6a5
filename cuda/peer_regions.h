/// \file
/// Where the memory lies that ranks have registered.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/device.h"

namespace aliquot::cuda {

/// The registrations of one rank: a few large pieces, each mapped by all ranks. Safe from any thread.
class PeerRegions {
 public:
  /// Maps the pieces of all ranks for use by `device`. Collective over `host`. Mapped until the result goes, which must
  /// not outlive this object; that waits for the device's work.
  /// \throws InvalidArgument, on every rank, unless `memory` is a whole piece of registrable_memory() and has the same
  /// size on every rank
  std::shared_ptr<void> add(Communicator& host, Device device, std::span<std::byte> memory);

  /// Where `rank` has what this rank has at `own`; null where nothing is registered.
  std::byte* find(int rank, const std::byte* own) const;

 private:
  struct Region;

  void insert(const Region& region);
  void remove(const std::byte* begin);

  mutable std::mutex mutex_;
  std::vector<const Region*> regions_;  ///< by address
};

}  // namespace aliquot::cuda
