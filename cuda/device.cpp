/// \file
/// The CUDA seam in a CUDA build; a CPU build links cpp/src/no_cuda.cpp instead.
#include "aliquot/device.h"

#include <cuda_runtime_api.h>

namespace aliquot {

bool built_with_cuda() noexcept { return true; }

int cuda_device_count() noexcept {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver or no device is an answer here; the error must not surface in a later call
  return 0;
}

}  // namespace aliquot
