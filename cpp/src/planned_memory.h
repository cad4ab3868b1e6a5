/// \file
/// The memory of one engine on a device.
#pragma once

#include <memory>

#include "aliquot/engine.h"

namespace aliquot {

/// The plan's arena, and beyond it what nobody planned: a ring that grows.
class PlannedMemory final : public MemoryResource {
 public:
  /// See planned_memory.
  PlannedMemory(const std::vector<UnitSpec>& units, Communicator& communicator, const EngineOptions& options,
                Device device);

  void* allocate(std::size_t bytes, std::size_t alignment, Stream stream) override;
  void deallocate(void* pointer, std::size_t bytes, Stream stream) noexcept override;
  Device device() const noexcept override { return arena_->device(); }
  const DeviceArena& arena() const { return *arena_; }
  /// True if the transport knows of the arena.
  bool registered() const { return registration_ != nullptr; }

 private:
  std::unique_ptr<DeviceArena> arena_;
  std::unique_ptr<MemoryResource> more_;
  std::shared_ptr<void> registration_;
};

}  // namespace aliquot
