#include "aliquot/streams.h"

#include <cuda_runtime_api.h>

#include <string>
#include <utility>

#include "aliquot/error.h"
#include "tests/cuda/device_test.h"
#include "tests/cuda/gate.h"

namespace aliquot::test {
namespace {

using CudaStreams = OnDevice;

TEST_F(CudaStreams, HavePriorities) {
  const OwnedStream low(gpu, Priority::low), high(gpu, Priority::high);
  int of_low = 0, of_high = 0;
  ASSERT_EQ(cudaStreamGetPriority(static_cast<cudaStream_t>(low.get().handle), &of_low), cudaSuccess);
  ASSERT_EQ(cudaStreamGetPriority(static_cast<cudaStream_t>(high.get().handle), &of_high), cudaSuccess);
  EXPECT_LT(of_high, of_low);  // CUDA counts downwards
}

TEST_F(CudaStreams, MoveAndAreOwnedOnce) {
  OwnedStream first(gpu, Priority::low);
  void* const handle = first.get().handle;
  OwnedStream second(std::move(first));
  EXPECT_EQ(second.get().handle, handle);
  EXPECT_EQ(first.get().handle, nullptr);  // NOLINT(bugprone-use-after-move)
  OwnedStream third;
  third = std::move(second);
  EXPECT_EQ(third.get().handle, handle);
  EXPECT_EQ(third.device(), gpu);
  synchronize(third.get());
}

TEST_F(CudaStreams, CopyAndFillInEveryDirection) {
  const std::vector<int> values{1, 2, 3, 4, 5};
  const DeviceArray<int> a(std::vector<int>(5), stream()), b(std::vector<int>(5), stream());
  std::vector<int> back(5), on_host(5);
  copy_async(a.data(), values.data(), 20, stream());
  copy_async(b.data(), a.data(), 20, stream());
  copy_async(back.data(), b.data(), 20, stream());
  copy_async(on_host.data(), values.data(), 20, stream());
  fill_async(a.data() + 1, 0xFF, 8, stream());
  EXPECT_THAT(a.values(), testing::ElementsAre(1, -1, -1, 4, 5));
  EXPECT_EQ(back, values);
  EXPECT_EQ(on_host, values);
}

using CudaEvents = OnDevice;

TEST_F(CudaEvents, HavePassedUntilTheyAreRecorded) {
  const Event never(gpu);
  EXPECT_TRUE(never.done());
  never.synchronize();
  never.block(stream());
  synchronize(stream());
}

TEST_F(CudaEvents, HoldAnotherStreamBackAndNotTheHost) {
  const OwnedStream other(gpu, Priority::high);
  const DeviceArray<int> data(std::vector<int>(1), stream());
  const std::unique_ptr<MemoryResource> pinned = pinned_memory();
  const Buffer seen(*pinned, sizeof(int));
  Event written(gpu), read(gpu);
  {
    Gate gate(stream());
    fill_async(data.data(), 0xFF, sizeof(int), stream());
    written.record(stream());
    written.block(other.get());
    copy_async(seen.data(), data.data(), sizeof(int), other.get());
    read.record(other.get());
    EXPECT_FALSE(written.done());
    EXPECT_FALSE(read.done());
    EXPECT_EQ(*reinterpret_cast<volatile int*>(seen.data()), 0);
    gate.open();
  }
  read.synchronize();
  EXPECT_TRUE(written.done());
  EXPECT_EQ(*reinterpret_cast<volatile int*>(seen.data()), -1);
}

TEST_F(CudaEvents, MayBeRecordedAgain) {
  Event event(gpu);
  event.record(stream());
  event.synchronize();
  Gate gate(stream());
  event.record(stream());
  EXPECT_FALSE(event.done());
  gate.open();
  event.synchronize();
  EXPECT_TRUE(event.done());
}

TEST_F(CudaEvents, LeaveNoErrorBehindWhenTheyAreNotDone) {
  Event event(gpu);
  Gate gate(stream());
  event.record(stream());
  EXPECT_FALSE(event.done());
  gate.open();
  fill_async(nullptr, 0, 0, stream());
  EXPECT_NO_THROW(synchronize(stream()));
}

// Destroyed when the process ends, after the runtime may be gone: a crash there is this program's exit status.
TEST_F(CudaEvents, MayOutliveTheRuntime) {
  static OwnedStream stream_of_the_process(gpu, Priority::low);
  static Event event_of_the_process(gpu);
  static const std::unique_ptr<MemoryResource> memory = device_memory(gpu);
  static const Buffer buffer(*memory, 100);
  static const DeviceArena arena(gpu, 1000);
  event_of_the_process.record(stream_of_the_process.get());
  event_of_the_process.synchronize();
  EXPECT_TRUE(event_of_the_process.done());
}

using CudaDeviceGuard = OnDevice;

TEST_F(CudaDeviceGuard, GoesBack) {
  const int last = cuda_device_count() - 1;
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  ASSERT_EQ(cudaFree(nullptr), cudaSuccess);  // starts device 0
  {
    const DeviceGuard guard({Device::Type::cuda, last});
    int current = -1;
    cudaGetDevice(&current);
    EXPECT_EQ(current, last);
  }
  int current = -1;
  cudaGetDevice(&current);
  EXPECT_EQ(current, 0);
}

TEST_F(CudaDeviceGuard, RefusesADeviceThatIsNotThere) {
  try {
    const DeviceGuard guard({Device::Type::cuda, 1000});
    ADD_FAILURE() << "no error";
  } catch (const DeviceError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("device 1000"));
  }
  EXPECT_NO_THROW(synchronize(stream()));
}

}  // namespace
}  // namespace aliquot::test
