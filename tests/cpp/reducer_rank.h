/// \file
/// One rank of a reduction, and what must come of it.
#pragma once

#include <algorithm>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "aliquot/reducer.h"
#include "toy_units.h"
#include "worlds.h"

namespace aliquot::test {

/// Which parameters have a gradient, and which numbers, in a micro-step of a rank: every mixture occurs.
inline UnitGradients gradients_of(const UnitSpec& unit, std::size_t index, int rank, int micro_step) {
  UnitGradients gradients(unit);
  const auto r = static_cast<std::size_t>(rank), m = static_cast<std::size_t>(micro_step);
  for (std::size_t param = 0; param < unit.params.size(); ++param) {
    if ((r + 2 * m + 3 * index + param) % 4 == 0) continue;
    gradients.set(param, numbers({r, m, index, param}, unit.params[param].numel));
  }
  return gradients;
}

inline bool contributes(const UnitSpec& unit, std::size_t index, int rank, int micro_step) {
  return unit.trainable && (static_cast<std::size_t>(rank + micro_step) + index) % 5 != 0;
}

inline bool all_contribute(const UnitSpec& unit, std::size_t index, int world_size, int micro_step) {
  bool all = true;
  for (int rank = 0; rank < world_size; ++rank) all = all && contributes(unit, index, rank, micro_step);
  return all;
}

inline void add(std::vector<float>& sum, std::span<const float> addends, std::size_t begin) {
  for (std::size_t i = 0; i < addends.size(); ++i) sum[begin + i] += addends[i];
}

/// What the store must hold of a unit after some micro-steps, worked out serially.
struct Expected {
  bool empty = true;
  std::vector<float> sum;
  std::vector<bool> present;

  Expected(const Layout& layout, std::size_t index, std::span<const int> micro_steps)
      : sum(layout.numel()), present(layout.unit().params.size()) {
    for (const int micro_step : micro_steps) {
      std::vector<float> total(layout.numel());
      bool any = false;
      for (int rank = 0; rank < layout.world_size(); ++rank) {
        if (!contributes(layout.unit(), index, rank, micro_step)) continue;
        any = true;
        const UnitGradients gradients = gradients_of(layout.unit(), index, rank, micro_step);
        for (std::size_t param = 0; param < present.size(); ++param) {
          if (gradients.has(param)) add(total, gradients.array(param), layout.param(param).begin);
          if (gradients.has(param)) present[param] = true;
        }
      }
      const float factor = 1.0F / static_cast<float>(layout.world_size());
      for (std::size_t i = 0; i < total.size(); ++i) sum[i] = empty ? total[i] * factor : sum[i] + total[i] * factor;
      empty = empty && !any;
    }
  }
};

/// One rank: its share of the units, and its micro-steps.
class Rank {
 public:
  Rank(Communicator& communicator, std::vector<UnitSpec> units, Stage stage = Stage(3))
      : communicator_(communicator), store(std::move(units), stage, communicator, host_memory()),
        reducer(store, communicator, host_memory()) {}

  // One-sided ranks offer in orders of their own; two-sided ones the units that all have, in the same order.
  std::vector<std::size_t> order(int micro_step) const {
    std::vector<std::size_t> units(store.unit_count());
    std::iota(units.begin(), units.end(), std::size_t{0});
    if (!communicator_.one_sided()) return units;
    std::ranges::shuffle(units, std::mt19937(static_cast<unsigned>(100 * micro_step + communicator_.rank())));
    return units;
  }

  void micro_step(int micro_step) {
    Left left;
    std::vector<UnitGradients> kept;  // the arrays behind `left`
    for (const std::size_t unit : order(micro_step)) {
      const UnitSpec& spec = store.layout(unit).unit();
      if (!contributes(spec, unit, communicator_.rank(), micro_step)) continue;
      kept.push_back(gradients_of(spec, unit, communicator_.rank(), micro_step));
      const bool together =
          communicator_.one_sided() || all_contribute(spec, unit, communicator_.world_size(), micro_step);
      if (!together || !reducer.offer(unit, kept.back().pointers())) left.emplace_back(unit, kept.back().pointers());
    }
    reducer.finish(left);
  }

  void require_sum_of(std::span<const int> micro_steps) {
    for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
      if (!store.holds(unit, Role::grad)) continue;
      const Layout& layout = store.layout(unit);
      const Expected expected(layout, unit, micro_steps);
      const std::string where = "unit '" + layout.unit().name + "' on rank " + std::to_string(communicator_.rank());
      require(reducer.empty(unit) == expected.empty, where + ": wrong about being empty");
      if (expected.empty) continue;
      const Range shard = layout.shard(communicator_.rank());
      const auto sum = std::span(expected.sum).subspan(shard.begin, shard.size());
      require(same_bits(store.own(unit, Role::grad), sum), where + ": other bits than the serial sum");
      require(reducer.statistics(unit) == grad_statistics(sum), where + ": statistics of something else");
    }
  }

 private:
  Communicator& communicator_;

 public:
  ShardStore store;
  Reducer reducer;
};

inline std::vector<UnitSpec> many_units() {
  std::vector<UnitSpec> units;
  for (std::size_t i = 0; i < 12; ++i)
    units.push_back({.name = "u" + std::to_string(i), .params = {{"w", 97 * i + 1}}});
  return units;
}

}  // namespace aliquot::test
