#include "aliquot/reducer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>

#include "aliquot/error.h"
#include "toy_units.h"
#include "worlds.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

// Which parameters have a gradient, and which numbers, in a micro-step of a rank: every mixture occurs.
UnitGradients gradients_of(const UnitSpec& unit, std::size_t index, int rank, int micro_step) {
  UnitGradients gradients(unit);
  const auto r = static_cast<std::size_t>(rank), m = static_cast<std::size_t>(micro_step);
  for (std::size_t param = 0; param < unit.params.size(); ++param) {
    if ((r + 2 * m + 3 * index + param) % 4 == 0) continue;
    gradients.set(param, numbers({r, m, index, param}, unit.params[param].numel));
  }
  return gradients;
}

bool contributes(const UnitSpec& unit, std::size_t index, int rank, int micro_step) {
  return unit.trainable && (static_cast<std::size_t>(rank + micro_step) + index) % 5 != 0;
}

bool all_contribute(const UnitSpec& unit, std::size_t index, int world_size, int micro_step) {
  bool all = true;
  for (int rank = 0; rank < world_size; ++rank) all = all && contributes(unit, index, rank, micro_step);
  return all;
}

void add(std::vector<float>& sum, std::span<const float> addends, std::size_t begin) {
  for (std::size_t i = 0; i < addends.size(); ++i) sum[begin + i] += addends[i];
}

// What the store must hold of a unit after some micro-steps, worked out serially.
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

// One rank: its share of the units, and its micro-steps.
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

std::vector<UnitSpec> many_units() {
  std::vector<UnitSpec> units;
  for (std::size_t i = 0; i < 12; ++i)
    units.push_back({.name = "u" + std::to_string(i), .params = {{"w", 97 * i + 1}}});
  return units;
}

class Reducers : public ::testing::TestWithParam<std::tuple<Transport, int>> {
 protected:
  void run(const RankBody& body) const { run_world(std::get<0>(GetParam()), std::get<1>(GetParam()), body); }
};

TEST_P(Reducers, MeansOverRanksAddUpOverMicroSteps) {
  run([](Communicator& communicator) {
    Rank rank(communicator, toy_units());
    std::vector<int> done;
    for (int micro_step = 0; micro_step < 10; ++micro_step) {
      rank.micro_step(micro_step);
      done.push_back(micro_step);
      rank.require_sum_of(done);
    }
  });
}

TEST_P(Reducers, EveryStageSumsAlike) {
  run([](Communicator& communicator) {
    for (int stage = 0; stage < 3; ++stage) {
      Rank rank(communicator, toy_units(), Stage(stage));
      for (const int micro_step : {3, 4}) rank.micro_step(micro_step);
      rank.require_sum_of(std::array{3, 4});
    }
  });
}

TEST_P(Reducers, MoreUnitsThanOutboxesInAnyOrderDoNotWaitInACircle) {
  run([](Communicator& communicator) {
    Rank rank(communicator, many_units());
    for (int micro_step = 0; micro_step < 40; ++micro_step) {
      rank.micro_step(micro_step);
      rank.require_sum_of(std::array{micro_step});
      rank.reducer.clear();
    }
  });
}

TEST_P(Reducers, APassWithoutGradientsAddsNothing) {
  run([](Communicator& communicator) {
    Rank rank(communicator, toy_units());
    rank.reducer.finish({});
    rank.require_sum_of({});
    rank.micro_step(0);
    rank.reducer.finish({});
    rank.require_sum_of(std::array{0});
  });
}

TEST_P(Reducers, AfterClearGradientsAreAssigned) {
  run([](Communicator& communicator) {
    Rank rank(communicator, toy_units());
    rank.micro_step(0);
    rank.reducer.clear();
    rank.require_sum_of({});
    for (std::size_t unit = 0; unit < rank.store.unit_count(); ++unit) {
      if (!rank.store.holds(unit, Role::grad)) continue;
      require(rank.reducer.statistics(unit) == GradStatistics{}, "statistics of what was cleared");
      std::ranges::fill(rank.store.own(unit, Role::grad), std::nanf(""));
    }
    communicator.barrier({"filled", ""});
    rank.micro_step(1);
    rank.micro_step(2);
    rank.require_sum_of(std::array{1, 2});
  });
}

TEST_P(Reducers, ClearOfOneParameterLeavesTheOthers) {
  constexpr std::size_t block = 3, cleared = 0;
  run([](Communicator& communicator) {
    Rank rank(communicator, toy_units());
    rank.micro_step(0);
    rank.micro_step(1);
    rank.reducer.clear(block, cleared);
    const Layout& layout = rank.store.layout(block);
    Expected expected(layout, block, std::array{0, 1});
    std::fill_n(expected.sum.begin() + static_cast<std::ptrdiff_t>(layout.param(cleared).begin),
                layout.param(cleared).size(), 0.0F);
    const Range shard = layout.shard(communicator.rank());
    const auto sum = std::span(expected.sum).subspan(shard.begin, shard.size());
    require(same_bits(rank.store.own(block, Role::grad), sum), "more or less was cleared");
    require(rank.reducer.statistics(block) == grad_statistics(sum), "statistics from before");
    require(!rank.reducer.present(block, cleared), "the parameter should be absent");
  });
}

TEST_P(Reducers, PresenceIsOfThisRankUntilAgreed) {
  run([](Communicator& communicator) {
    Rank rank(communicator, toy_units());
    rank.micro_step(2);
    const auto require_presence = [&](std::size_t unit, const std::vector<bool>& present) {
      for (std::size_t p = 0; p < present.size(); ++p) require(rank.reducer.present(unit, p) == present[p], "presence");
    };
    for (std::size_t unit = 0; unit < rank.store.unit_count(); ++unit) {
      require_presence(unit, Expected(rank.store.layout(unit), unit, std::array{2}).present);
    }
  });
}

TEST_P(Reducers, ScalingMultipliesGradientsAndTheirStatistics) {
  run([](Communicator& communicator) {
    Rank rank(communicator, toy_units());
    rank.micro_step(0);
    const std::size_t embed = 1;
    const auto own = rank.store.own(embed, Role::grad);
    std::vector<float> expected(own.begin(), own.end());
    for (float& value : expected) value *= 0.25F;
    rank.reducer.scale_all(0.25F);
    require(same_bits(own, expected), "not scaled");
    require(rank.reducer.statistics(embed) == grad_statistics(expected), "statistics from before");
  });
}

TEST_P(Reducers, GradientsThatCannotBeTakenAreRefusedAndChangeNothing) {
  run([](Communicator& communicator) {
    Rank rank(communicator, toy_units());
    const auto refused = [](const std::string& what, const std::function<void()>& call) {
      try {
        call();
      } catch (const InvalidArgument& error) {
        return require(std::string(error.what()).find(what) != std::string::npos, error.what());
      }
      require(false, "not refused: " + what);
    };
    const std::size_t table = 2, block = 3, head = 5;
    const auto offer = [&](std::size_t unit) {
      rank.reducer.offer(unit, gradients_of(rank.store.layout(unit).unit(), unit, 1, 1).pointers());
    };
    refused("'table'", [&] { offer(table); });
    refused("'block'", [&] { rank.reducer.offer(block, Gradients(3, nullptr)); });
    refused("'table'", [&] { rank.reducer.finish({{table, Gradients(1, nullptr)}}); });
    offer(head);
    refused("'head'", [&] { offer(head); });
    refused("'head'", [&] { rank.reducer.finish({{head, Gradients(2, nullptr)}}); });
    rank.reducer.finish({});
    rank.reducer.clear();
    rank.micro_step(0);
    rank.require_sum_of(std::array{0});
  });
}

INSTANTIATE_TEST_SUITE_P(Reducer, Reducers,
                         ::testing::Combine(::testing::Values(Transport::one_sided_threads,
                                                              Transport::two_sided_threads, Transport::processes),
                                            ::testing::Values(1, 2, 3, 5)),
                         [](const auto& with) {
                           return name_of(std::get<0>(with.param)) + "_" + std::to_string(std::get<1>(with.param));
                         });

// One rank begins, and gives up; its peers are told at once, whatever they were doing.
TEST(ReducerAbandon, FailsThePeersOnceAndTheNextMicroStepIsRight) {
  run_world(Transport::one_sided_threads, 3, [](Communicator& communicator) {
    Rank rank(communicator, many_units());
    rank.micro_step(0);
    for (int round = 1; round < 20; ++round) {
      if (communicator.rank() == round % 3) {
        rank.reducer.offer(4, gradients_of(rank.store.layout(4).unit(), 4, communicator.rank(), round).pointers());
      } else {
        const std::string message = message_of([&] { rank.micro_step(round); });
        require(message.find("gave up the backward pass") != std::string::npos, "got: " + message);
        require(message.find("aliquot.reset_step(model)") != std::string::npos, "got: " + message);
      }
      rank.reducer.abandon();
      rank.micro_step(round);
      rank.require_sum_of(std::array{round});
    }
  });
}

TEST(ReducerAbandon, BeforeAnythingWasOfferedFailsThePeersToo) {
  run_world(Transport::one_sided_threads, 3, [](Communicator& communicator) {
    Rank rank(communicator, toy_units());
    if (communicator.rank() != 1) {
      const std::string message = message_of([&] { rank.micro_step(0); });
      // Of the ranks that wait, one may hear of it from the other.
      require(message.find("gave up the backward pass") != std::string::npos, "got: " + message);
    }
    rank.reducer.abandon();
    rank.micro_step(0);
    rank.require_sum_of(std::array{0});
  });
}

TEST(ReducerAbandon, OfTwoSidedRanksForgetsWhatWasSummed) {
  run_world(Transport::two_sided_threads, 3, [](Communicator& communicator) {
    Rank rank(communicator, toy_units());
    rank.micro_step(0);
    rank.reducer.offer(5, gradients_of(rank.store.layout(5).unit(), 5, communicator.rank(), 1).pointers());
    rank.reducer.abandon();
    rank.micro_step(2);
    rank.require_sum_of(std::array{2});
  });
}

}  // namespace
}  // namespace aliquot
