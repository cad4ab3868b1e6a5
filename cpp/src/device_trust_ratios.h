/// \file
/// TrustRatios on a device: the host does not wait for them.
#pragma once

#include <cstddef>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/device_kernels.h"
#include "aliquot/memory_resource.h"
#include "aliquot/shard_store.h"

namespace aliquot {

/// What this rank steps of a unit, cut to chunks: shard by shard, as TrustRatios adds it.
std::vector<cuda::Chunk> stepped_chunks(const ShardStore& store, std::size_t unit);

class DeviceTrustRatios {
 public:
  /// Tables in `memory`. Empty unless `store` is given.
  DeviceTrustRatios() = default;
  DeviceTrustRatios(const ShardStore& store, Communicator& communicator, MemoryResource& memory);

  /// Where the sums of a unit's chunks go.
  NormSquares* of_chunks(std::size_t unit) const;
  /// Adds them up over chunks and ranks. Every rank calls it.
  void add_up(Communicator& communicator, Stream stream);
  /// Of a unit's parameters, then.
  const float* of(std::size_t unit) const;

 private:
  bool sharded_ = false;
  std::size_t parts_ = 0;
  std::size_t params_ = 0;
  std::vector<std::size_t> first_param_, first_chunk_;  ///< of each unit
  Buffer chunks_;                                       ///< NormSquares of each chunk
  Buffer spans_;                                        ///< the chunks of each parameter, in each shard that is stepped
  Buffer sums_;                                         ///< over them, of all ranks
  Buffer ratios_;
};

}  // namespace aliquot
