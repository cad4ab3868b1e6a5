/// \file
/// The one check of ranks, and their names in messages.
#pragma once

#include <string>
#include <vector>

namespace aliquot {

/// \throws InvalidArgument unless 0 <= rank < world_size
void require_rank(int rank, int world_size);

/// "rank 1, rank 2"
std::string list_of(const std::vector<int>& ranks);

}  // namespace aliquot
