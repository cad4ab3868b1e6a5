/// \file
/// How the ranks of the transport `nccl` come together, with the help of a communicator for host memory.
#pragma once

#include "aliquot/communicator.h"
#include "aliquot/transports.h"
#include "cuda/nccl_link.h"

namespace aliquot::nccl {

/// Collective. \throws InvalidArgument if `device` is no GPU, or another rank's too
void require_own_device(Communicator& control, Device device);

/// Collective.
Link connect(Communicator& control, Device device, const NcclOrigin& origin, Config config, Patience patience);

/// For a link that gathers: copy engines do the work where they can, which leaves the multiprocessors to others.
Config gather_config();

}  // namespace aliquot::nccl
