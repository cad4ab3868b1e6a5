/// \file
/// Memory of a device that is given back without waiting for the device: another rank of the test may have the same
/// one, and wait on it for the rank that gives back.
#pragma once

#include <memory>

#include "aliquot/memory_resource.h"

namespace aliquot::test {

std::unique_ptr<MemoryResource> pooled_memory(Device device);

}  // namespace aliquot::test
