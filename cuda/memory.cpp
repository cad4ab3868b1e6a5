#include <cstring>
#include <string>

#include "aliquot/error.h"
#include "aliquot/memory_resource.h"
#include "aliquot/streams.h"
#include "cuda/launch.h"

namespace aliquot {
namespace {

using cuda::check;
using cuda::native;

/// What cudaMalloc and cudaHostAlloc promise.
constexpr std::size_t alignment_given = 256;

void require_given(std::size_t alignment) {
  if (alignment > alignment_given) {
    throw InvalidArgument("device and pinned memory: alignment is " + std::to_string(alignment) + "; give at most " +
                          std::to_string(alignment_given));
  }
}

std::string name_of(Device device) { return "cuda:" + std::to_string(device.index); }

void require_cuda(Device device) {
  if (device.type != Device::Type::cuda) throw InvalidArgument("device memory: give a CUDA device, not the CPU");
}

[[noreturn]] void refuse(Device device, std::size_t bytes) {
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "say how much memory is free");
  throw OutOfMemory("memory of " + name_of(device) + ": " + std::to_string(bytes) + " bytes are wanted, " +
                    std::to_string(free) + " of " + std::to_string(total) +
                    " are free; use more ranks, a higher stage, bf16, or a smaller budget for prefetching, and see "
                    "what else runs on the device");
}

/// \param device is current
void* device_malloc(Device device, std::size_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    refuse(device, bytes);
  }
  check(status, "allocate memory");
  return data;
}

class DeviceMemory final : public MemoryResource {
 public:
  explicit DeviceMemory(Device device) : device_(device) {}

  void* allocate(std::size_t bytes, std::size_t alignment, Stream stream) override {
    require_given(alignment);
    const DeviceGuard guard(device_);
    void* const data = device_malloc(device_, bytes);
    fill_async(data, 0, bytes, stream);
    synchronize(stream);  // so that every stream finds zeros
    return data;
  }
  void deallocate(void* pointer, std::size_t, Stream) noexcept override { cudaFree(pointer); }
  Device device() const noexcept override { return device_; }

 private:
  Device device_;
};

class PinnedMemory final : public MemoryResource {
 public:
  void* allocate(std::size_t bytes, std::size_t alignment, Stream) override {
    require_given(alignment);
    void* data = nullptr;
    const cudaError_t status = cudaHostAlloc(&data, bytes, cudaHostAllocPortable);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw OutOfMemory("pinned memory: " + std::to_string(bytes) +
                        " bytes could not be locked; use more ranks or keep less on the host");
    }
    check(status, "allocate pinned memory");
    return std::memset(data, 0, bytes);
  }
  void deallocate(void* pointer, std::size_t, Stream) noexcept override { cudaFreeHost(pointer); }
  Device device() const noexcept override { return {}; }
};

}  // namespace

std::unique_ptr<MemoryResource> pinned_memory() { return std::make_unique<PinnedMemory>(); }

std::unique_ptr<MemoryResource> device_memory(Device device) {
  require_cuda(device);
  const DeviceGuard guard(device);  // refuses a device that is not there
  return std::make_unique<DeviceMemory>(device);
}

}  // namespace aliquot
