#include "tests/cuda/pooled_memory.h"

#include <cuda_runtime_api.h>

#include "aliquot/streams.h"
#include "cuda/launch.h"

namespace aliquot::test {
namespace {

class PooledMemory final : public MemoryResource {
 public:
  explicit PooledMemory(Device device) : device_(device) {}

  void* allocate(std::size_t bytes, std::size_t, Stream stream) override {
    const DeviceGuard guard(device_);
    void* data = nullptr;
    cuda::check(cudaMallocAsync(&data, bytes, cuda::native(stream)), "take memory from the pool");
    fill_async(data, 0, bytes, stream);
    synchronize(stream);
    return data;
  }
  void deallocate(void* pointer, std::size_t, Stream stream) noexcept override {
    const DeviceGuard guard(device_);
    cudaFreeAsync(pointer, cuda::native(stream));
  }
  Device device() const noexcept override { return device_; }

 private:
  Device device_;
};

}  // namespace

std::unique_ptr<MemoryResource> pooled_memory(Device device) { return std::make_unique<PooledMemory>(device); }

}  // namespace aliquot::test
