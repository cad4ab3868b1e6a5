#include <algorithm>
#include <utility>

#include "aliquot/engine.h"
#include "device_reducer.h"

namespace aliquot {
namespace {

std::size_t planned(std::size_t bytes) { return DeviceArena::planned(bytes); }

/// Counts what is asked for, and gives nothing.
class Tally final : public MemoryResource {
 public:
  explicit Tally(Device device) : device_(device) {}
  void* allocate(std::size_t bytes, std::size_t, Stream) override {
    bytes_ += planned(bytes);
    return nullptr;
  }
  void deallocate(void*, std::size_t, Stream) noexcept override {}
  Device device() const noexcept override { return device_; }
  std::size_t bytes() const { return bytes_; }

 private:
  Device device_;
  std::size_t bytes_ = 0;
};

std::size_t engine_bytes(const std::vector<UnitSpec>& units, Communicator& communicator, const EngineOptions& options,
                         Device device) {
  Tally tally(device);
  const ShardStore store(units, options.stage, communicator, tally, options.master);
  std::vector<const Layout*> layouts;
  for (std::size_t unit = 0; unit < store.unit_count(); ++unit) layouts.push_back(&store.layout(unit));
  const Slots slots(std::move(layouts), options.gatherer.slots, tally);
  const std::size_t slot_bytes = options.stage.shards_parameters() ? slots.planned_bytes() : 0;
  return tally.bytes() + slot_bytes + DeviceReducer::planned_bytes(store);
}

/// The plan's arena, and beyond it what nobody planned: a ring that grows, an optimizer's tables.
class PlannedMemory final : public MemoryResource {
 public:
  PlannedMemory(Device device, std::size_t bytes) : arena_(device, bytes), more_(device_memory(device)) {}
  void* allocate(std::size_t bytes, std::size_t alignment, Stream stream) override {
    if (arena_.used() + planned(bytes) > arena_.capacity()) return more_->allocate(bytes, alignment, stream);
    return arena_.allocate(bytes, alignment, stream);
  }
  void deallocate(void* pointer, std::size_t bytes, Stream stream) noexcept override {
    if (!arena_.owns(pointer)) more_->deallocate(pointer, bytes, stream);
  }
  Device device() const noexcept override { return arena_.device(); }

 private:
  DeviceArena arena_;
  std::unique_ptr<MemoryResource> more_;
};

}  // namespace

std::unique_ptr<MemoryResource> planned_memory(const std::vector<UnitSpec>& units, Communicator& communicator,
                                               const EngineOptions& options, Device device) {
  return std::make_unique<PlannedMemory>(device, engine_bytes(units, communicator, options, device));
}

}  // namespace aliquot
