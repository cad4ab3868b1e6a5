/// \file
/// Who holds which element of a unit: pure arithmetic.
#pragma once

#include <cstddef>
#include <vector>

#include "aliquot/parameters.h"

namespace aliquot {

/// A half-open range of elements, [begin, end).
struct Range {
  std::size_t begin = 0;
  std::size_t end = 0;

  std::size_t size() const { return end - begin; }
  bool empty() const { return begin == end; }
  friend bool operator==(const Range&, const Range&) = default;
};

Range intersect(Range a, Range b);

/// The part of one parameter that lies in some range of the flat unit.
struct Segment {
  std::size_t param = 0;  ///< index into the unit's parameters
  Range range;            ///< elements of the flat unit
};

/// The flat unit: its parameters one after the other, each aligned to `alignment` elements, cut into `world_size`
/// shards of equal, aligned length. What lies between and behind the parameters is padding; it is in no segment.
class Layout {
 public:
  /// 16 elements: a cache line of fp32, and whole vectors of every instruction set in use.
  static constexpr std::size_t alignment = 16;

  Layout(UnitSpec unit, int world_size);

  const UnitSpec& unit() const { return unit_; }
  /// From here on the unit trains; its layout is the same.
  void unfreeze() { unit_.trainable = true; }
  int world_size() const { return world_size_; }
  std::size_t shard_numel() const { return shard_numel_; }
  std::size_t numel() const { return shard_numel_ * static_cast<std::size_t>(world_size_); }
  std::size_t shard_bytes() const { return shard_numel_ * size_of(unit_.dtype); }
  std::size_t bytes() const { return numel() * size_of(unit_.dtype); }

  /// Where a parameter lies in the flat unit.
  Range param(std::size_t index) const { return params_.at(index); }
  /// What `rank` owns. The ranges of all ranks partition [0, numel()).
  Range shard(int rank) const;
  /// The parameters' parts inside `range`, in order; never padding, never empty.
  std::vector<Segment> segments(Range range) const;

 private:
  UnitSpec unit_;
  int world_size_;
  std::vector<Range> params_;
  std::size_t shard_numel_ = 0;
};

/// ZeRO's stages as values (Rajbhandari et al., 2020, section 5): what is sharded over the ranks.
struct Stage {
  int number = 3;

  explicit Stage(int number);
  bool shards_states() const { return number >= 1; }
  bool shards_gradients() const { return number >= 2; }
  bool shards_parameters() const { return number >= 3; }
};

}  // namespace aliquot
