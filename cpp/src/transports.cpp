#include "aliquot/transports.h"

#include <optional>
#include <string>

#include "aliquot/error.h"
#include "process.h"
#include "rank.h"
#include "shared_communicator.h"
#include "shared_memory.h"

namespace aliquot {
namespace {

void require_neighbour(const ProcessIdentity& mine, int named_rank, const ProcessIdentity& theirs) {
  const auto refuse = [&](const std::string& difference) {
    throw CommunicatorError("rank " + std::to_string(named_rank) + " (pid " + std::to_string(theirs.pid) + ") " +
                            difference +
                            "; the transport shared_memory joins processes of one user on one host. Across hosts use " +
                            "the transport process_group");
  };
  if (theirs.boot != mine.boot) refuse("runs on host '" + theirs.host + "', this rank on '" + mine.host + "'");
  if (theirs.pid_namespace != mine.pid_namespace) refuse("runs in another container on host '" + mine.host + "'");
  if (theirs.user != mine.user) {
    refuse("belongs to user " + std::to_string(theirs.user) + ", this rank to user " + std::to_string(mine.user));
  }
}

std::vector<ProcessIdentity> exchange_identities(const KeyValueStore& store, const std::string& name, int rank,
                                                 int world_size, RankNames names) {
  const auto key = [&](int of) { return name + "/rank/" + std::to_string(of); };
  const ProcessIdentity mine = ProcessIdentity::of_this_process();
  store.set(key(rank), mine.to_text());
  std::vector<ProcessIdentity> identities;
  for (int r = 0; r < world_size; ++r) {
    identities.push_back(r == rank ? mine : ProcessIdentity::from_text(store.get(key(r))));
  }
  for (int r = 0; r < world_size; ++r) require_neighbour(mine, names.of(r), identities[static_cast<std::size_t>(r)]);
  return identities;
}

std::shared_ptr<SharedMemory> open_memory(pid_t creator, int named_creator, int file, std::size_t bytes) {
  try {
    return SharedMemory::open(creator, file, bytes);
  } catch (const CommunicatorError& error) {
    if (!Process(creator).ended(std::chrono::seconds(1))) throw;
    throw PeerLost(named_creator, "rank " + std::to_string(named_creator) + " is gone: " + error.what());
  }
}

std::shared_ptr<SharedMemory> exchange_memory(const KeyValueStore& store, const std::string& name, int rank,
                                              pid_t creator, int named_creator, std::size_t bytes) {
  const std::string key = name + "/memory";
  if (rank != 0) return open_memory(creator, named_creator, std::stoi(store.get(key)), bytes);
  auto memory = SharedMemory::create(bytes);
  store.set(key, std::to_string(memory->file()));
  return memory;
}

std::vector<std::optional<Process>> watch(const std::vector<ProcessIdentity>& identities, int rank) {
  std::vector<std::optional<Process>> peers(identities.size());
  for (std::size_t r = 0; r < peers.size(); ++r) {
    if (r != static_cast<std::size_t>(rank)) peers[r].emplace(identities[r].pid);
  }
  return peers;
}

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int world_size, std::chrono::milliseconds timeout,
                                                                     RankNames names) {
  require_rank(0, world_size);
  const auto control = SharedMemory::create(SharedWorld::bytes(world_size));
  control->close_file();
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (int rank = 0; rank < world_size; ++rank) {
    std::vector<std::optional<Process>> threads(static_cast<std::size_t>(world_size));
    communicators.push_back(
        std::make_unique<SharedCommunicator>("thread", control, rank, world_size, timeout, std::move(threads), names));
  }
  return communicators;
}

std::unique_ptr<Communicator> make_shared_memory_communicator(const KeyValueStore& store, const std::string& name,
                                                              int rank, int world_size,
                                                              std::chrono::milliseconds timeout,
                                                              ControlChannel* channel, RankNames names) {
  require_rank(rank, world_size);
  const auto identities = exchange_identities(store, name, rank, world_size, names);
  const auto control =
      exchange_memory(store, name, rank, identities[0].pid, names.of(0), SharedWorld::bytes(world_size));
  auto communicator = std::make_unique<SharedCommunicator>("shared_memory", control, rank, world_size, timeout,
                                                           watch(identities, rank), names);
  if (channel != nullptr) communicator->follow(*channel);
  communicator->barrier({"connect", name});
  control->close_file();
  return communicator;
}

void set_interrupt_check(std::function<void()> check) { interrupt_check() = std::move(check); }

}  // namespace aliquot
