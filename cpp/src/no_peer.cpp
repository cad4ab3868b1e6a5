/// \file
/// Fills the seam of the transport `peer` in a CPU build; a CUDA build links cuda/ instead.
#include "aliquot/error.h"
#include "aliquot/transports.h"

namespace aliquot {

std::unique_ptr<Communicator> make_peer_communicator(std::unique_ptr<Communicator>, Device, ControlChannel*) {
  throw DeviceError(
      "this build has no CUDA back end, which the transport peer needs; build with nvcc on the path, or use the "
      "transport shared_memory or process_group");
}

bool can_map_peers(Communicator&, Device) { return false; }

}  // namespace aliquot
