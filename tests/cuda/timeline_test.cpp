#include "aliquot/timeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "tests/cuda/device_test.h"
#include "tests/cuda/gate.h"

namespace aliquot::test {
namespace {

constexpr std::size_t bytes = 64 << 20;

/// Spins for some milliseconds and returns how many seconds it was.
double spin() {
  const auto begin = Timeline::Clock::now();
  while (Timeline::Clock::now() - begin < std::chrono::milliseconds(5)) {
  }
  return std::chrono::duration<double>(Timeline::Clock::now() - begin).count();
}

using CudaTimelines = OnDevice;

TEST_F(CudaTimelines, TimeWhatAStreamDoes) {
  const std::unique_ptr<MemoryResource> memory = device_memory(gpu);
  const Buffer data(*memory, bytes);
  Timeline timeline(gpu);
  {
    const TimedScope outer(&timeline, Activity::step, Hold::work, "outer", bytes, stream());
    const TimedScope inner(&timeline, Activity::step, Hold::none, "inner", bytes, stream());
    fill_async(data.data(), 0xFF, bytes, stream());
  }
  const std::vector<Slice> slices = timeline.slices();
  const std::chrono::duration<double> age = Timeline::Clock::now() - timeline.origin();
  ASSERT_EQ(slices.size(), 2);
  EXPECT_GT(slices[1].end, slices[1].begin);
  EXPECT_LE(slices[0].begin, slices[1].begin);
  EXPECT_LE(slices[1].end, slices[0].end);
  EXPECT_GE(slices[0].begin, 0);
  EXPECT_LT(slices[0].end, age.count() + 1e-3);
  EXPECT_EQ(slices[1].hold, Hold::none);
}

// The host knows that the stream waits from before `waited` until after it.
TEST_F(CudaTimelines, TimeHowLongAStreamIsHeldUpWhileTheHostGoesOn) {
  const OwnedStream other(gpu, Priority::high);
  Event held(gpu), waiting(gpu);
  Timeline timeline(gpu);
  Gate gate(other.get());
  held.record(other.get());
  waiting.record(stream());
  block(held, stream(), &timeline, Activity::gather, "unit");
  waiting.synchronize();
  spin();  // for the mark behind `waiting`
  const double waited = spin();
  gate.open();
  const std::vector<Slice> slices = timeline.slices();
  ASSERT_EQ(slices.size(), 1);
  EXPECT_EQ(slices[0].hold, Hold::wait);
  EXPECT_GE(slices[0].end - slices[0].begin, 0.99 * waited);
}

TEST_F(CudaTimelines, AreExactFarFromTheirBeginning) {
  Timeline timeline(gpu);
  for (int i = 0; i < 300; ++i) {  // the anchor moves once a second
    const TimedScope scope(&timeline, Activity::step, Hold::work, "spin", 0, stream());
    spin();
  }
  double end = 0;
  for (const Slice& slice : timeline.slices()) {
    EXPECT_GE(slice.begin, end - 1e-6);
    end = slice.end;
  }
  EXPECT_GT(end, 1.0);
}

}  // namespace
}  // namespace aliquot::test
