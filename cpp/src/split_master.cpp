#include "aliquot/split_master.h"

#include <cstddef>

#include "aliquot/parallel.h"

namespace aliquot {
namespace {

constexpr std::size_t grain = std::size_t{1} << 16;

}  // namespace

void split_masters(std::span<const float> masters, std::uint16_t* high, std::uint16_t* low) {
  parallel_for(masters.size(), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      const SplitMaster halves = split_master(masters[i]);
      high[i] = halves.high;
      low[i] = halves.low;
    }
  });
}

void join_masters(const std::uint16_t* high, const std::uint16_t* low, std::span<float> masters) {
  parallel_for(masters.size(), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) masters[i] = join_master({high[i], low[i]});
  });
}

}  // namespace aliquot
