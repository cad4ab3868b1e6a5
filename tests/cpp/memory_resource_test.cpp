#include "aliquot/memory_resource.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "aliquot/error.h"

namespace aliquot {
namespace {

constexpr std::size_t large = (std::size_t{4} << 20) + 100;  // has pages of its own

class HostMemory : public testing::TestWithParam<std::size_t> {};

INSTANTIATE_TEST_SUITE_P(Bytes, HostMemory, testing::Values(1, 64, 1000, 100'000, (2u << 20) - 1, 2u << 20, large));

TEST_P(HostMemory, IsZeroedEvenWhereItWasUsedBefore) {
  for (int again = 0; again < 3; ++again) {
    const Buffer buffer(host_memory(), GetParam());
    const auto is_zero = [](std::byte byte) { return byte == std::byte{0}; };
    EXPECT_TRUE(std::all_of(buffer.data(), buffer.data() + buffer.bytes(), is_zero));
    std::memset(buffer.data(), 0xAB, buffer.bytes());
  }
}

TEST_P(HostMemory, IsAligned) {
  for (std::size_t alignment = 1; alignment <= 4096; alignment *= 2) {
    void* const pointer = host_memory().allocate(GetParam(), alignment, {});
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(pointer) % alignment, 0u) << alignment;
    host_memory().deallocate(pointer, GetParam(), {});
  }
}

TEST(HostMemoryPages, GoBackToTheSystem) {
  void* const pointer = host_memory().allocate(large, 64, {});
  EXPECT_EQ(msync(pointer, large, MS_ASYNC), 0);
  host_memory().deallocate(pointer, large, {});
  EXPECT_EQ(msync(pointer, large, MS_ASYNC), -1);
  EXPECT_EQ(errno, ENOMEM);
}

TEST(HostMemoryErrors, SayHowManyBytesWereAskedFor) {
  for (std::size_t bytes : {std::size_t{1} << 62, std::numeric_limits<std::size_t>::max()}) {
    try {
      host_memory().allocate(bytes, 64, {});
      ADD_FAILURE() << "no error";
    } catch (const OutOfMemory& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr(std::to_string(bytes)));
    }
  }
}

TEST(HostMemoryErrors, RefuseAlignmentsThatCannotBe) {
  for (std::size_t alignment : {0, 3, 8192}) {
    EXPECT_THROW(host_memory().allocate(100, alignment, {}), InvalidArgument);
  }
}

TEST(HostMemoryDevice, IsTheCpu) { EXPECT_EQ(host_memory().device(), Device{}); }

/// Counts what it has given out.
class CountingMemory final : public MemoryResource {
 public:
  void* allocate(std::size_t bytes, std::size_t alignment, Stream stream) override {
    ++live;
    return host_memory().allocate(bytes, alignment, stream);
  }
  void deallocate(void* pointer, std::size_t bytes, Stream stream) noexcept override {
    --live;
    host_memory().deallocate(pointer, bytes, stream);
  }
  Device device() const noexcept override { return {}; }

  int live = 0;
};

TEST(BufferOwnership, MovesAndIsGivenBackOnce) {
  CountingMemory memory;
  {
    Buffer first(memory, 100);
    std::byte* const data = first.data();
    Buffer second(std::move(first));
    EXPECT_EQ(second.data(), data);
    EXPECT_EQ(second.bytes(), 100u);
    second = Buffer(memory, 200);
    EXPECT_EQ(memory.live, 1);
    const Buffer empty(memory, 0);
    EXPECT_EQ(empty.data(), nullptr);
  }
  EXPECT_EQ(memory.live, 0);
}

}  // namespace
}  // namespace aliquot
