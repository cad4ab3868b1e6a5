/// \file
/// Fills the CUDA seam in a CPU build; a CUDA build links cuda/device.cpp instead.
#include "aliquot/device.h"

namespace aliquot {

bool built_with_cuda() noexcept { return false; }

int cuda_device_count() noexcept { return 0; }

}  // namespace aliquot
