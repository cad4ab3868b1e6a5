#include "aliquot/partition.h"

#include <algorithm>
#include <string>

namespace aliquot {
namespace {

std::size_t round_up(std::size_t value, std::size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

Range intersect(Range a, Range b) {
  const std::size_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

Layout::Layout(UnitSpec unit, int world_size) : unit_(std::move(unit)), world_size_(world_size) {
  if (world_size < 1) {
    throw InvalidArgument("layout of unit '" + unit_.name + "': world_size is " + std::to_string(world_size) +
                          "; it must be at least 1");
  }
  std::size_t end = 0;
  for (const ParamSpec& param : unit_.params) {
    params_.push_back({end, end + param.numel});
    end = round_up(end + param.numel, alignment);
  }
  const auto ranks = static_cast<std::size_t>(world_size);
  shard_numel_ = round_up((end + ranks - 1) / ranks, alignment);
}

Range Layout::shard(int rank) const {
  if (rank < 0 || rank >= world_size_) {
    throw InvalidArgument("layout of unit '" + unit_.name + "': no rank " + std::to_string(rank) + " in a world of " +
                          std::to_string(world_size_));
  }
  const std::size_t begin = static_cast<std::size_t>(rank) * shard_numel_;
  return {begin, begin + shard_numel_};
}

std::vector<Segment> Layout::segments(Range range) const {
  std::vector<Segment> found;
  for (std::size_t index = 0; index < params_.size(); ++index) {
    const Range part = intersect(params_[index], range);
    if (!part.empty()) found.push_back({index, part});
  }
  return found;
}

Stage::Stage(int number) : number(number) {
  if (number < 0 || number > 3) {
    throw InvalidArgument("stage is " + std::to_string(number) +
                          "; ZeRO has stages 0 (nothing sharded), 1 (optimizer states), 2 (and gradients) and 3 (and "
                          "parameters)");
  }
}

}  // namespace aliquot
