#include "aliquot/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace aliquot {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Units = std::vector<std::size_t>;

const Units bytes = {100, 200, 300, 50};  // of units 0 to 3

Units ahead(const Schedule& schedule, std::size_t position) {
  const auto units = schedule.ahead(position);
  return {units.begin(), units.end()};
}

TEST(Schedule, GathersWhatComesNextSoonestFirst) {
  const Schedule schedule({0, 1, 2, 3}, bytes, 1000);
  EXPECT_THAT(ahead(schedule, 0), ElementsAre(1, 2, 3));
  EXPECT_THAT(ahead(schedule, 2), ElementsAre(3));
  EXPECT_THAT(ahead(schedule, 3), IsEmpty());
}

TEST(Schedule, StaysWithinTheBudget) {
  const Units trace = {0, 1, 2, 3, 2, 1, 0};
  for (const std::size_t budget : {0u, 99u, 200u, 350u, 550u}) {
    const Schedule schedule(trace, bytes, budget);
    for (std::size_t position = 0; position < trace.size(); ++position) {
      std::size_t sum = 0;
      for (const std::size_t unit : schedule.ahead(position)) sum += bytes[unit];
      EXPECT_LE(sum, budget);
    }
  }
}

TEST(Schedule, DoesNotPassOverAUnitThatIsTooLarge) {
  EXPECT_THAT(ahead(Schedule({0, 2, 3}, bytes, 60), 0), IsEmpty()) << "unit 3 would fit, but unit 2 is needed first";
}

TEST(Schedule, CountsAUnitOnceAndNeverTheCurrentOne) {
  const Schedule schedule({0, 1, 0, 1, 3}, bytes, 250);
  EXPECT_THAT(ahead(schedule, 0), ElementsAre(1, 3));
}

TEST(Schedule, BehindTheEndThereIsNothing) {
  EXPECT_THAT(ahead(Schedule({0, 1}, bytes, 1000), 2), IsEmpty());
  EXPECT_THAT(ahead(Schedule(), 0), IsEmpty());
}

class TracerTest : public ::testing::Test {
 protected:
  Units acquired(std::size_t unit) {
    const auto units = tracer_.acquired(unit);
    return {units.begin(), units.end()};
  }
  void pass(const Units& units) {
    for (const std::size_t unit : units) tracer_.acquired(unit);
    tracer_.end_pass();
  }

  Tracer tracer_{bytes, 1000};
};

TEST_F(TracerTest, PredictsByThePassBefore) {
  EXPECT_THAT(acquired(0), IsEmpty());
  EXPECT_THAT(acquired(1), IsEmpty());
  tracer_.end_pass();
  EXPECT_THAT(acquired(0), ElementsAre(1));
}

TEST_F(TracerTest, OffTheTraceItPredictsNothingUntilTheEnd) {
  pass({0, 1, 2, 3});
  EXPECT_THAT(acquired(0), ElementsAre(1, 2, 3));
  EXPECT_THAT(acquired(2), IsEmpty()) << "the trace has unit 1 here";
  EXPECT_THAT(acquired(2), IsEmpty()) << "the same unit at the same place, but on another path";
  EXPECT_THAT(acquired(3), IsEmpty());
}

TEST_F(TracerTest, ANewPathIsTheTraceOfTheNextPass) {
  pass({0, 1, 2, 3});
  pass({0, 2});
  EXPECT_THAT(acquired(0), ElementsAre(2));
}

TEST_F(TracerTest, APassLongerThanItsTracePredictsNothingAtTheEnd) {
  pass({0, 1});
  acquired(0);
  acquired(1);
  EXPECT_THAT(acquired(2), IsEmpty());
}

TEST_F(TracerTest, AnEmptyPassLeavesTheTrace) {
  pass({0, 1});
  tracer_.end_pass();
  EXPECT_THAT(acquired(0), ElementsAre(1));
}

}  // namespace
}  // namespace aliquot
