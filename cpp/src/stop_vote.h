/// \file
/// After which call of should_stop all ranks stop.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace aliquot {

/// Rank 0's half of the agreement. Each rank says how many calls it has made, and makes no other before it knows the
/// answer: the call after the most that any has made. So nobody is past it.
class StopVote {
 public:
  explicit StopVote(std::size_t world_size) : counts_(world_size) {}

  /// True at the first request.
  bool begin() { return !std::exchange(begun_, true); }
  /// The answer, when the last rank has said its number. Its first one counts, and there is one answer.
  std::optional<std::uint64_t> count(int rank, std::uint64_t calls) {
    auto& mine = counts_[static_cast<std::size_t>(rank)];
    if (mine) return {};
    mine = calls;
    if (!std::all_of(counts_.begin(), counts_.end(), [](const auto& count) { return count.has_value(); })) return {};
    return **std::max_element(counts_.begin(), counts_.end()) + 1;
  }

 private:
  bool begun_ = false;
  std::vector<std::optional<std::uint64_t>> counts_;
};

}  // namespace aliquot
