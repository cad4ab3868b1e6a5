#include <cuda_runtime_api.h>

#include <set>
#include <string>
#include <thread>

#include "aliquot/error.h"
#include "aliquot/memory_resource.h"
#include "tests/cuda/device_test.h"

namespace aliquot::test {
namespace {

std::vector<std::byte> bytes_at(const void* data, std::size_t count, Stream stream) {
  std::vector<std::byte> bytes(count, std::byte{1});
  copy_async(bytes.data(), data, count, stream);
  synchronize(stream);
  return bytes;
}

cudaMemoryType type_of(const void* pointer) {
  cudaPointerAttributes attributes{};
  EXPECT_EQ(cudaPointerGetAttributes(&attributes, pointer), cudaSuccess);
  return attributes.type;
}

using CudaArena = OnDevice;

TEST_F(CudaArena, HandsOutZeroedAlignedPiecesSideBySide) {
  DeviceArena arena(gpu, 3 * DeviceArena::granule + 100);
  std::byte* const first = static_cast<std::byte*>(arena.allocate(513, 64, stream()));
  std::byte* const second = static_cast<std::byte*>(arena.allocate(1, 256, stream()));
  std::byte* const third = static_cast<std::byte*>(arena.allocate(100, 64, stream()));  // up to the last byte
  EXPECT_EQ(second - first, 1024);
  EXPECT_EQ(third - second, 512);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first) % 256, 0U);
  EXPECT_EQ(bytes_at(first, arena.capacity(), stream()), std::vector<std::byte>(arena.capacity()));
  EXPECT_EQ(arena.used(), arena.capacity());
  EXPECT_EQ(arena.device(), gpu);
  EXPECT_EQ(type_of(first), cudaMemoryTypeDevice);
}

TEST_F(CudaArena, HoldsExactlyWhatWasPlanned) {
  const std::vector<std::size_t> sizes{1, 512, 513, 4096, 77};
  std::size_t capacity = 0;
  for (const std::size_t size : sizes) capacity += DeviceArena::planned(size);
  DeviceArena arena(gpu, capacity);
  std::vector<Buffer> buffers;
  for (const std::size_t size : sizes) buffers.emplace_back(arena, size);
  EXPECT_EQ(arena.used(), capacity);
  try {
    const Buffer more(arena, 99);
    ADD_FAILURE() << "no error";
  } catch (const OutOfMemory& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("99 bytes"));
    EXPECT_THAT(error.what(), testing::HasSubstr("0 of " + std::to_string(capacity)));
  }
}

TEST_F(CudaArena, IsRefusedWithTheFigures) {
  std::size_t free = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  try {
    const DeviceArena arena(gpu, total + 1);
    ADD_FAILURE() << "no error";
  } catch (const OutOfMemory& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr(std::to_string(total + 1) + " bytes are wanted"));
    EXPECT_THAT(error.what(), testing::HasSubstr(" of " + std::to_string(total) + " are free"));
  }
  EXPECT_NO_THROW(DeviceArena(gpu, 1000));  // the error is over
}

TEST_F(CudaArena, GivesEveryThreadItsOwn) {
  constexpr std::size_t each = 200;
  DeviceArena arena(gpu, 4 * each * DeviceArena::granule);
  std::vector<std::vector<void*>> pieces(4);
  std::vector<std::thread> threads;
  for (std::vector<void*>& mine : pieces) {
    threads.emplace_back([&arena, &mine] {
      for (std::size_t i = 0; i < each; ++i) mine.push_back(arena.allocate(300, 64, {}));
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::set<void*> all;
  for (const std::vector<void*>& mine : pieces) all.insert(mine.begin(), mine.end());
  EXPECT_EQ(all.size(), 4 * each);
}

TEST_F(CudaArena, IsOfADevice) {
  EXPECT_THROW(DeviceArena(Device{}, 1000), InvalidArgument);
  EXPECT_THROW(DeviceArena(gpu, 1000).allocate(8, 4096, stream()), InvalidArgument);
}

using CudaMemory = OnDevice;

TEST_F(CudaMemory, IsZeroedEvenWhereItWasUsedBefore) {
  const std::unique_ptr<MemoryResource> memory = device_memory(gpu);
  for (int again = 0; again < 3; ++again) {
    const Buffer buffer(*memory, 3'000'001);
    EXPECT_EQ(bytes_at(buffer.data(), buffer.bytes(), stream()), std::vector<std::byte>(buffer.bytes()));
    fill_async(buffer.data(), 0xAB, buffer.bytes(), stream());
    synchronize(stream());
  }
  EXPECT_EQ(memory->device(), gpu);
  EXPECT_THROW(device_memory(Device{}), InvalidArgument);
}

TEST_F(CudaMemory, IsRefusedWithTheFigures) {
  const std::unique_ptr<MemoryResource> memory = device_memory(gpu);
  EXPECT_THROW(memory->allocate(std::size_t{1} << 50, 64, stream()), OutOfMemory);
  EXPECT_NO_THROW(Buffer(*memory, 100));
}

TEST_F(CudaMemory, OfTheHostIsPinnedAndZeroed) {
  const std::unique_ptr<MemoryResource> memory = pinned_memory();
  const Buffer buffer(*memory, 100'001);
  EXPECT_EQ(type_of(buffer.data()), cudaMemoryTypeHost);
  EXPECT_EQ(std::vector<std::byte>(buffer.data(), buffer.data() + buffer.bytes()),
            std::vector<std::byte>(buffer.bytes()));
  EXPECT_EQ(memory->device(), Device{});
}

}  // namespace
}  // namespace aliquot::test
