#include "reduce_order.h"

#include <gtest/gtest.h>

#include <vector>

#include "worlds.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using Units = std::vector<std::size_t>;

Units left_of(const ReduceOrder& order) { return {order.left().begin(), order.left().end()}; }

void take_what_is_left(ReduceOrder& order) {
  while (!order.left().empty()) order.advance();
}

TEST(ReduceOrder, GoesFromTheLastUnitToTheFirstAtFirst) {
  ReduceOrder order({1, 2, 4});
  EXPECT_FALSE(order.is_turn_of(2));
  EXPECT_TRUE(order.is_turn_of(4));
  order.advance();
  EXPECT_TRUE(order.is_turn_of(2));
  EXPECT_EQ(left_of(order), (Units{2, 1}));
}

TEST(ReduceOrder, IsThenThatOfRank0Everywhere) {
  run_world(Transport::one_sided_threads, 3, [](Communicator& communicator) {
    ReduceOrder order({0, 1, 2, 3});
    const Units arrivals = communicator.rank() == 0 ? Units{1, 3, 0} : Units{0, 1, 2, 3};
    for (const std::size_t unit : arrivals) {
      if (order.is_turn_of(unit)) order.advance();
    }
    take_what_is_left(order);
    order.end(communicator);
    require(left_of(order) == Units{1, 3, 0, 2}, "another order than rank 0's");
    take_what_is_left(order);
    order.end(communicator);
    require(left_of(order) == Units{1, 3, 0, 2}, "the order changed");
  });
}

TEST(ReduceOrder, BeginsAnewAfterAMicroStepThatWasGivenUp) {
  ReduceOrder order({0, 1, 2});
  ASSERT_TRUE(order.is_turn_of(2));
  order.advance();
  order.restart();
  EXPECT_TRUE(order.is_turn_of(2));
  EXPECT_EQ(left_of(order), (Units{2, 1, 0}));
}

}  // namespace
}  // namespace aliquot
