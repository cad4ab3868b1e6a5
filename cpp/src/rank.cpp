#include "rank.h"

#include "aliquot/error.h"

namespace aliquot {

void require_rank(int rank, int world_size) {
  if (world_size < 1 || rank < 0 || rank >= world_size) {
    throw InvalidArgument("rank " + std::to_string(rank) + " of a world of " + std::to_string(world_size) +
                          ": ranks count from 0 to world_size - 1");
  }
}

std::string list_of(const std::vector<int>& ranks) {
  std::string text;
  for (const int rank : ranks) text += (text.empty() ? "rank " : ", rank ") + std::to_string(rank);
  return ranks.empty() ? "unknown" : text;
}

}  // namespace aliquot
