/// \file
/// Fills the seam of the transport `nccl` in a CPU build; a CUDA build links cuda/ instead.
#include "aliquot/error.h"
#include "aliquot/transports.h"

namespace aliquot {
namespace {

[[noreturn]] void refuse() {
  throw DeviceError(
      "this build has no CUDA back end, which the transport nccl needs; build with nvcc on the path, or use the "
      "transport shared_memory or process_group");
}

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator>, Device, const NcclOrigin&,
                                                     ControlChannel*) {
  refuse();
}

std::unique_ptr<MemoryResource> nccl_memory(Device) { refuse(); }

void set_nccl_library(const std::string&) {}

}  // namespace aliquot
