/// \file
/// Whether GPUs can map each other's memory.
#pragma once

#include "aliquot/communicator.h"
#include "aliquot/device.h"

namespace aliquot::cuda {

/// Collective over `control`; throws on every rank or on none.
/// \throws InvalidArgument that names two ranks and their devices, or the rank whose device can't share memory
void require_peer_access(Communicator& control, Device device);

}  // namespace aliquot::cuda
