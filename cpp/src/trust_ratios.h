/// \file
/// How far a Normed rule steps each parameter: norms over the parts that ranks hold.
#pragma once

#include <cstddef>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/kernels.h"
#include "aliquot/shard_store.h"

namespace aliquot {

/// Sums over the parts of each parameter, by the rank whose shard they lie in: added in rank order, they are the same
/// at every stage, also where a rank holds all parts.
class TrustRatios {
 public:
  TrustRatios(const ShardStore& store, Communicator& communicator);

  NormSquares& part(int rank, std::size_t unit, std::size_t param);
  /// Where states are sharded: brings the parts of all ranks. Every rank calls it.
  void exchange();
  float of(std::size_t unit, std::size_t param) const;

 private:
  Communicator& communicator_;
  bool sharded_;
  std::vector<std::size_t> first_param_;  ///< of each unit
  std::size_t params_ = 0;
  std::vector<NormSquares> parts_;  ///< of rank 0's shards, then of rank 1's, ...
};

}  // namespace aliquot
