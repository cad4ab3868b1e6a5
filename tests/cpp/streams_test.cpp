#include "aliquot/streams.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "aliquot/error.h"
#include "aliquot/memory_resource.h"

namespace aliquot {
namespace {

constexpr Device missing{Device::Type::cuda, 1000};

TEST(StreamsOfTheCpu, HoldNothingAndHaveAlwaysPassed) {
  const DeviceGuard guard(Device{});
  const OwnedStream stream(Device{}, Priority::high);
  EXPECT_EQ(stream.get().handle, nullptr);
  Event event(Device{});
  event.record(stream.get());
  event.block(stream.get());
  event.synchronize();
  EXPECT_TRUE(event.done());
}

TEST(StreamsOfTheCpu, CopyAndFill) {
  const std::array<int, 3> from{1, 2, 3};
  std::array<int, 3> to{};
  copy_async(to.data(), from.data(), sizeof from, {});
  synchronize(Stream{});
  EXPECT_EQ(to, from);
  if (cuda_device_count() == 0) fill_async(to.data(), 0xFF, sizeof(int), {});  // else the null stream is the device's
  copy_async(nullptr, nullptr, 0, {});
  EXPECT_THAT(to, testing::ElementsAre(cuda_device_count() == 0 ? -1 : 1, 2, 3));
}

TEST(Streams, AreRefusedWhereThereIsNoSuchDevice) {
  EXPECT_THROW(DeviceGuard{missing}, DeviceError);
  EXPECT_THROW(OwnedStream(missing, Priority::low), DeviceError);
  EXPECT_THROW(Event{missing}, DeviceError);
  EXPECT_THROW(device_memory(missing), DeviceError);
  EXPECT_THROW(DeviceArena(missing, 1000), DeviceError);
}

}  // namespace
}  // namespace aliquot
