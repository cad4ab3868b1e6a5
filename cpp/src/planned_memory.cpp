#include "planned_memory.h"

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "aliquot/transports.h"
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
  const ShardStore store(units, options.stage, communicator, tally, options.store);
  std::vector<const Layout*> layouts;
  for (std::size_t unit = 0; unit < store.unit_count(); ++unit) layouts.push_back(&store.layout(unit));
  const Slots slots(std::move(layouts), options.gatherer.slots, tally);
  const std::size_t slot_bytes = options.stage.shards_parameters() ? slots.planned_bytes() : 0;
  return tally.bytes() + slot_bytes + DeviceReducer::planned_bytes(store, communicator, options.replicas);
}

/// Asks every rank.
bool all_have(bool mine, Communicator& communicator) {
  const auto part = static_cast<std::byte>(mine);
  std::vector<std::byte> all(static_cast<std::size_t>(communicator.world_size()));
  communicator.host().all_gather({"register", "memory"}, {&part, 1}, all.data());
  return std::ranges::find(all, std::byte{0}) == all.end();
}

/// Null unless every rank gets one.
std::unique_ptr<DeviceArena> arena_of_nccl(Communicator& communicator, Device device, std::size_t bytes) {
  std::unique_ptr<DeviceArena> arena;
  try {
    arena = std::make_unique<DeviceArena>(nccl_memory(device), bytes);
  } catch (const Error&) {
    arena = nullptr;  // plain memory may do, or says what is wrong
  }
  return all_have(arena != nullptr, communicator) ? std::move(arena) : nullptr;
}

/// \throws OutOfMemory on every rank if one can't have it
std::unique_ptr<DeviceArena> arena_for_peers(Communicator& communicator, std::size_t bytes) {
  std::unique_ptr<DeviceArena> arena;
  std::exception_ptr refused;
  try {
    arena = std::make_unique<DeviceArena>(communicator.registrable_memory(), bytes);
  } catch (const Error&) {
    refused = std::current_exception();
  }
  if (all_have(arena != nullptr, communicator)) return arena;
  if (refused) std::rethrow_exception(refused);
  throw OutOfMemory("another rank can't have the " + std::to_string(bytes) +
                    " bytes that the engine needs on each device; its error says more");
}

}  // namespace

PlannedMemory::PlannedMemory(const std::vector<UnitSpec>& units, Communicator& communicator,
                             const EngineOptions& options, Device device)
    : more_(device_memory(device)) {
  const std::size_t bytes = engine_bytes(units, communicator, options, device);
  if (communicator.maps_peers()) {
    arena_ = arena_for_peers(communicator, bytes);
  } else if (options.register_memory && communicator.name() == "nccl") {
    arena_ = arena_of_nccl(communicator, device, bytes);
  }
  if (arena_ != nullptr) {
    registration_ = communicator.register_memory(arena_->whole());
  } else {
    arena_ = std::make_unique<DeviceArena>(device, bytes);
  }
}

void* PlannedMemory::allocate(std::size_t bytes, std::size_t alignment, Stream stream) {
  const bool fits = arena_->used() + planned(bytes) <= arena_->capacity();
  return fits ? arena_->allocate(bytes, alignment, stream) : more_->allocate(bytes, alignment, stream);
}

void PlannedMemory::deallocate(void* pointer, std::size_t bytes, Stream stream) noexcept {
  if (!arena_->owns(pointer)) more_->deallocate(pointer, bytes, stream);
}

std::unique_ptr<MemoryResource> planned_memory(const std::vector<UnitSpec>& units, Communicator& communicator,
                                               const EngineOptions& options, Device device) {
  return std::make_unique<PlannedMemory>(units, communicator, options, device);
}

}  // namespace aliquot
