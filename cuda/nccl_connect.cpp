#include "cuda/nccl_connect.h"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "aliquot/error.h"
#include "cuda/gpu_identity.h"

namespace aliquot::nccl {
namespace {

using cuda::Uuid;

/// Of rank 0, to all: made by it, unless the caller brought one.
UniqueId shared_id(Communicator& control, const std::string& brought) {
  UniqueId id{};
  if (!brought.empty()) {
    if (brought.size() != id.bytes.size()) {
      throw InvalidArgument("a unique id of NCCL has " + std::to_string(id.bytes.size()) + " bytes, not " +
                            std::to_string(brought.size()));
    }
    std::copy(brought.begin(), brought.end(), id.bytes.begin());
    return id;
  }
  if (control.rank() == 0) {
    if (const auto result = api().get_unique_id(&id); result != Result::success) {
      throw CommunicatorError(std::string("NCCL could not make a unique id: ") + api().error_string(result));
    }
  }
  control.broadcast({"connect", "unique id"}, std::as_writable_bytes(std::span(id.bytes)), 0);
  return id;
}

/// Hosts that are played on one machine may share its GPUs: each has one of its own then, for NCCL too (NCCL_HOSTID).
Uuid of_played_host(Uuid uuid) {
  const char* const host = std::getenv("ALIQUOT_HOST_ID");
  const std::size_t mark = host == nullptr ? 0 : std::hash<std::string_view>()(host);
  for (std::size_t i = 0; i < sizeof mark; ++i) uuid[i] ^= static_cast<std::byte>(mark >> (8 * i));
  return uuid;
}

Comm adopted(const Communicator& control, Device device, void* handle) {
  const auto comm = static_cast<Comm>(handle);
  int count = 0, rank = 0, index = 0;
  const Api& api = nccl::api();
  for (const auto result : {api.count(comm, &count), api.user_rank(comm, &rank), api.device(comm, &index)}) {
    if (result != Result::success) {
      throw InvalidArgument(std::string("the communicator that was brought is of no use: ") + api.error_string(result));
    }
  }
  if (count == control.world_size() && rank == control.rank() && index == device.index) return comm;
  throw InvalidArgument("the NCCL communicator that was brought is rank " + std::to_string(rank) + " of " +
                        std::to_string(count) + " on cuda:" + std::to_string(index) + ", this rank is rank " +
                        std::to_string(control.rank()) + " of " + std::to_string(control.world_size()) +
                        " on cuda:" + std::to_string(device.index));
}

}  // namespace

void require_own_device(Communicator& control, Device device) {
  const auto name_of = [&](int rank) { return "rank " + std::to_string(control.names().of(rank)); };
  const Uuid mine = of_played_host(cuda::uuid_of(device));
  const std::vector<Uuid> all = cuda::uuids_of_ranks(control, mine);
  for (std::size_t r = 0; r < all.size(); ++r) {
    if (static_cast<int>(r) == control.rank() || all[r] != mine) continue;
    throw InvalidArgument(name_of(control.rank()) + " and " + name_of(static_cast<int>(r)) +
                          " use the same GPU (cuda:" + std::to_string(device.index) + " of " + name_of(control.rank()) +
                          "); start one rank per GPU, each with the device of its LOCAL_RANK");
  }
}

// A rank that fails here leaves the others inside NCCL, which tells them nothing.
Link connect(Communicator& control, Device device, const NcclOrigin& origin, Config config, Patience patience) {
  try {
    if (origin.communicator != nullptr) {
      return {device, control.rank(), adopted(control, device, origin.communicator), config, std::move(patience)};
    }
    const UniqueId id = shared_id(control, origin.unique_id);
    return {device, control.rank(), control.world_size(), id, config, std::move(patience)};
  } catch (const std::exception& error) {
    control.abort(error.what());
    throw;
  }
}

Config gather_config() {
  Config config;
  if (api().version >= cta_policy_zero_since) config.cta_policy = cta_policy_zero;
  return config;
}

}  // namespace aliquot::nccl
