#include "cuda/gpu_identity.h"

#include <cstring>
#include <span>

#include "aliquot/error.h"
#include "cuda/launch.h"

namespace aliquot::cuda {

Uuid uuid_of(Device device) {
  if (device.type != Device::Type::cuda) throw InvalidArgument("a transport of GPUs joins GPUs, not CPUs");
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device.index), "say which device this is");
  Uuid uuid{};
  std::memcpy(uuid.data(), &properties.uuid, uuid.size());
  return uuid;
}

std::vector<Uuid> uuids_of_ranks(Communicator& control, const Uuid& mine) {
  std::vector<Uuid> all(static_cast<std::size_t>(control.world_size()));
  control.all_gather({"connect", "devices"}, mine, std::as_writable_bytes(std::span(all)).data());
  return all;
}

}  // namespace aliquot::cuda
