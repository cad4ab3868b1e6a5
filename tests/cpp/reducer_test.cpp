#include "aliquot/reducer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "aliquot/error.h"
#include "reducer_rank.h"
#include "worlds.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

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

TEST_P(Reducers, PresenceIsOfAllRanks) {
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

}  // namespace
}  // namespace aliquot
