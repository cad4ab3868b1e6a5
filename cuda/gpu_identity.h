/// \file
/// Which GPU a rank has, whatever number it goes by in the rank's process.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include <cuda_runtime_api.h>

#include "aliquot/communicator.h"
#include "aliquot/device.h"

namespace aliquot::cuda {

using Uuid = std::array<std::byte, sizeof(cudaUUID_t)>;

/// \throws InvalidArgument for a CPU; DeviceError if there is no such device
Uuid uuid_of(Device device);

/// By rank. Collective over `control`.
std::vector<Uuid> uuids_of_ranks(Communicator& control, const Uuid& mine);

}  // namespace aliquot::cuda
