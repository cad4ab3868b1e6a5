/// \file
/// The one check of ranks.
#pragma once

namespace aliquot {

/// \throws InvalidArgument unless 0 <= rank < world_size
void require_rank(int rank, int world_size);

}  // namespace aliquot
