/// \file
/// The memory that the transport `peer` can register.
#pragma once

#include <memory>

#include "aliquot/memory_resource.h"

namespace aliquot::cuda {

/// Every piece is a DeviceMapping of its own, in whole pages of 2 MiB: for few, large pieces. A piece that was given
/// back stays mapped as long as it is registered.
/// \throws DeviceError if there is no such device
std::unique_ptr<MemoryResource> registrable_memory(Device device);

}  // namespace aliquot::cuda
