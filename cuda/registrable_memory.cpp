#include "cuda/registrable_memory.h"

#include <map>
#include <mutex>

#include "aliquot/streams.h"
#include "cuda/device_mapping.h"
#include "cuda/launch.h"

namespace aliquot::cuda {
namespace {

class RegistrableMemory final : public MemoryResource {
 public:
  explicit RegistrableMemory(Device device) : device_(device) { const DeviceGuard guard(device); }

  void* allocate(std::size_t bytes, std::size_t, Stream stream) override {
    auto mapping = DeviceMapping::create(device_, bytes);
    std::byte* const data = mapping->memory().data();
    const DeviceGuard guard(device_);
    fill_async(data, 0, bytes, stream);
    synchronize(stream);  // so that every stream, and every peer, finds zeros
    const std::lock_guard lock(mutex_);
    pieces_[data] = std::move(mapping);
    return data;
  }

  void deallocate(void* pointer, std::size_t, Stream) noexcept override {
    const std::lock_guard lock(mutex_);
    pieces_.erase(pointer);
  }

  Device device() const noexcept override { return device_; }

 private:
  Device device_;
  std::mutex mutex_;
  std::map<void*, std::shared_ptr<DeviceMapping>> pieces_;
};

}  // namespace

std::unique_ptr<MemoryResource> registrable_memory(Device device) {
  return std::make_unique<RegistrableMemory>(device);
}

}  // namespace aliquot::cuda
