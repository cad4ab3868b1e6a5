// Fills the seam of memory_resource.h with the host's memory, and remembers what was taken.
#include "aliquot/memory_resource.h"

#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>

#include "tests/cuda/pooled_memory.h"
#include "tests/simulated/streams.h"

namespace aliquot {
namespace {

/// All memory that streams may use later, by its beginning.
class Planned {
 public:
  void add(const void* begin, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    pieces_[static_cast<const std::byte*>(begin)] = bytes;
  }
  void remove(const void* begin) {
    const std::lock_guard lock(mutex_);
    pieces_.erase(static_cast<const std::byte*>(begin));
  }
  bool holds(const void* data) {
    const auto* const byte = static_cast<const std::byte*>(data);
    const std::lock_guard lock(mutex_);
    const auto after = pieces_.upper_bound(byte);
    return after != pieces_.begin() && byte < std::prev(after)->first + std::prev(after)->second;
  }

 private:
  std::mutex mutex_;
  std::map<const std::byte*, std::size_t, std::less<>> pieces_;
};

Planned& planned() {
  static Planned all;
  return all;
}

void* take(std::size_t bytes) {
  constexpr std::size_t page = 4096;
  const std::size_t whole = (bytes + page - 1) / page * page;
  void* const data = std::aligned_alloc(page, whole);
  std::memset(data, 0, whole);
  planned().add(data, bytes);
  simulated::note_taken();
  return data;
}

void give_back(void* pointer) {
  planned().remove(pointer);
  std::free(pointer);
}

/// To give memory back waits for the device.
class SimulatedMemory final : public MemoryResource {
 public:
  explicit SimulatedMemory(Device device) : device_(device) {}
  void* allocate(std::size_t bytes, std::size_t, Stream) override { return take(bytes); }
  void deallocate(void* pointer, std::size_t, Stream) noexcept override {
    simulated::synchronize(device_);
    give_back(pointer);
  }
  Device device() const noexcept override { return device_; }

 private:
  Device device_;
};

/// Here a stream does it, when it gets there.
class PooledMemory final : public MemoryResource {
 public:
  explicit PooledMemory(Device device) : device_(device) {}
  void* allocate(std::size_t bytes, std::size_t, Stream) override { return take(bytes); }
  void deallocate(void* pointer, std::size_t, Stream stream) noexcept override {
    simulated::give(stream, [=] { give_back(pointer); });
  }
  Device device() const noexcept override { return device_; }

 private:
  Device device_;
};

}  // namespace

bool simulated::is_planned(const void* data) { return planned().holds(data); }

std::unique_ptr<MemoryResource> pinned_memory() { return std::make_unique<SimulatedMemory>(Device{}); }
std::unique_ptr<MemoryResource> device_memory(Device device) { return std::make_unique<SimulatedMemory>(device); }
std::unique_ptr<MemoryResource> test::pooled_memory(Device device) { return std::make_unique<PooledMemory>(device); }

}  // namespace aliquot
