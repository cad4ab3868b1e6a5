#include <string>

#include "aliquot/error.h"
#include "aliquot/streams.h"
#include "aliquot/transports.h"
#include "cuda/launch.h"
#include "cuda/nccl_api.h"

namespace aliquot {
namespace {

class NcclMemory final : public MemoryResource {
 public:
  explicit NcclMemory(Device device) : device_(device), api_(nccl::api()) { const DeviceGuard guard(device); }

  void* allocate(std::size_t bytes, std::size_t, Stream) override {
    const DeviceGuard guard(device_);
    void* data = nullptr;
    if (const nccl::Result result = api_.allocate(&data, bytes); result != nccl::Result::success) {
      cudaGetLastError();
      throw OutOfMemory(std::to_string(bytes) + " bytes on cuda:" + std::to_string(device_.index) +
                        ", from NCCL: " + api_.error_string(result));
    }
    cuda::check(cudaMemset(data, 0, bytes), "zero memory");
    cuda::check(cudaStreamSynchronize(nullptr), "zero memory");
    return data;
  }

  void deallocate(void* pointer, std::size_t, Stream) noexcept override {
    try {
      const DeviceGuard guard(device_);
      api_.free(pointer);
    } catch (const Error&) {  // the runtime is gone, and the memory with it
    }
  }

  Device device() const noexcept override { return device_; }

 private:
  Device device_;
  const nccl::Api& api_;
};

}  // namespace

std::unique_ptr<MemoryResource> nccl_memory(Device device) { return std::make_unique<NcclMemory>(device); }

}  // namespace aliquot
