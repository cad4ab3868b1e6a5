#include "aliquot/timeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>

#include "aliquot/error.h"
#include "toy_training.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

std::vector<std::string> names(const std::vector<Slice>& slices) {
  std::vector<std::string> found;
  for (const Slice& slice : slices) found.push_back(slice.name);
  return found;
}

TEST(TimedEventsOfTheCpu, TellTheTimeBetweenThem) {
  const auto before = std::chrono::steady_clock::now();
  TimedEvent first(Device{}), second(Device{});
  first.record({});
  second.record({});
  const std::chrono::duration<double> around = std::chrono::steady_clock::now() - before;
  EXPECT_GE(second.seconds_since(first), 0);
  EXPECT_LE(second.seconds_since(first), around.count());
  EXPECT_EQ(first.seconds_since(second), -second.seconds_since(first));
}

TEST(TimedEvents, AreRefusedWhereThereIsNoSuchDevice) {
  EXPECT_THROW(TimedEvent({Device::Type::cuda, 1000}), DeviceError);
  EXPECT_THROW(Timeline({Device::Type::cuda, 1000}), DeviceError);
}

TEST(Timelines, HoldScopesInTheOrderInWhichTheyBegan) {
  Timeline timeline(Device{});
  {
    const TimedScope outer(&timeline, Activity::step, Hold::work, "outer", 0, {});
    const TimedScope inner(&timeline, Activity::step, Hold::work, "inner", 7, {});
  }
  {
    const TimedScope next(&timeline, Activity::gather, Hold::wait, "next", 0, {});
  }
  const std::vector<Slice> slices = timeline.slices();
  ASSERT_THAT(names(slices), testing::ElementsAre("outer", "inner", "next"));
  EXPECT_GE(slices[0].begin, 0);
  EXPECT_LE(slices[0].begin, slices[1].begin);
  EXPECT_LE(slices[1].begin, slices[1].end);
  EXPECT_LE(slices[1].end, slices[0].end);
  EXPECT_LE(slices[0].end, slices[2].begin);
  EXPECT_EQ(slices[1].bytes, 7);
  EXPECT_EQ(slices[2].activity, Activity::gather);
  EXPECT_EQ(slices[2].hold, Hold::wait);
}

TEST(Timelines, LeaveOutWhatIsNotOver) {
  Timeline timeline(Device{});
  const TimedScope open(&timeline, Activity::step, Hold::work, "open", 0, {});
  {
    const TimedScope over(&timeline, Activity::step, Hold::work, "over", 0, {});
  }
  EXPECT_THAT(names(timeline.slices()), testing::ElementsAre("over"));
}

TEST(Timelines, KnowThatOnCpusTheCallerDoesAllWorkAndWaitsForNoEvent) {
  Timeline timeline(Device{});
  {
    const TimedScope beside(&timeline, Activity::gather, Hold::none, "beside", 0, {});
  }
  block(Event(Device{}), {}, &timeline, Activity::gather, "waiting");
  block(Event(Device{}), {}, nullptr, Activity::gather, "nowhere");
  const std::vector<Slice> slices = timeline.slices();
  ASSERT_THAT(names(slices), testing::ElementsAre("beside"));
  EXPECT_EQ(slices[0].hold, Hold::work);
}

/// How many slices that are not waits there are of each unit and activity.
std::map<std::pair<std::string, Activity>, int> counts(const std::vector<Slice>& slices) {
  std::map<std::pair<std::string, Activity>, int> found;
  for (const Slice& slice : slices) {
    if (slice.hold != Hold::wait) ++found[{slice.name, slice.activity}];
  }
  return found;
}

/// What a step of ToyTraining does with each unit at stage 3, if nothing is kept between gathers.
void require_a_step(const std::vector<Slice>& slices, std::size_t step) {
  auto found = counts(slices);
  for (std::size_t unit = 0; unit < toy_units().size(); ++unit) {
    const std::string name = toy_units()[unit].name;
    const bool walked = std::ranges::find(toy_walk, unit) != toy_walk.end();
    const bool trains = walked && toy_units()[unit].trainable;
    require((found[{name, Activity::gather}] > 0) == walked, name + ": gathers");
    require(found[{name, Activity::pack}] == (trains ? 1 : 0), name + ": packs");
    require((found[{name, Activity::reduce}] > 0) >= trains, name + ": reduces");
    require(found[{name, Activity::step}] == (toy_units()[unit].trainable ? 1 : 0), name + ": steps");
  }
  require(found[{"step", Activity::step}] == 1, "step " + std::to_string(step) + ": one for all");
  for (const Slice& slice : slices) require(slice.begin <= slice.end && slice.begin >= 0, slice.name + ": times");
}

std::vector<float> trained(Communicator& communicator, const EngineOptions& options, bool profiled) {
  ToyTraining training(communicator, options);
  for (std::size_t step = 0; step < 3; ++step) {
    Timeline timeline(Device{});
    if (profiled) training.engine.profile(&timeline);
    training.step(step);
    training.engine.profile(nullptr);
    if (profiled) require_a_step(timeline.slices(), step);
    require(profiled || timeline.slices().empty(), "slices of nobody");
  }
  std::vector<float> parameters = training.parameters();
  communicator.barrier({"end", ""});
  return parameters;
}

class Profiles : public testing::TestWithParam<Transport> {};

TEST_P(Profiles, NameWhatAStepDoesAndChangeNothing) {
  EngineOptions options;
  options.gatherer.landing = Landing::slots;
  run_world(GetParam(), 2, [&](Communicator& communicator) {
    require(same_bits(trained(communicator, options, true), trained(communicator, options, false)), "other bits");
  });
}

INSTANTIATE_TEST_SUITE_P(Timelines, Profiles,
                         testing::Values(Transport::one_sided_threads, Transport::two_sided_threads,
                                         Transport::processes),
                         [](const auto& with) { return name_of(with.param); });

TEST(ProfilesOfOneModel, AreOneAtATime) {
  run_world(Transport::one_sided_threads, 1, [](Communicator& communicator) {
    ToyTraining training(communicator, {});
    Timeline first(Device{}), second(Device{});
    training.engine.profile(&first);
    const std::string refusal = message_of([&] { training.engine.profile(&second); });
    require(refusal.find("profiled already") != std::string::npos, refusal);
    training.step(0);
    require(second.slices().empty() && !first.slices().empty(), "the first one goes on");
    training.engine.profile(nullptr);
    training.engine.profile(&second);
    training.engine.profile(nullptr);
  });
}

}  // namespace
}  // namespace aliquot
