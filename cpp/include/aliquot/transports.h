/// \file
/// The transports, and how their communicators are made.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/control.h"
#include "aliquot/memory_resource.h"

namespace aliquot {

inline constexpr std::chrono::milliseconds default_timeout = std::chrono::minutes(10);

/// `thread`: ranks are threads of this process. Element r is rank r's; give each to its thread. A rank whose thread
/// ends early must call abort() (destroying its communicator does), or its peers wait for their deadline.
std::vector<std::unique_ptr<Communicator>> make_thread_communicators(
    int world_size, std::chrono::milliseconds timeout = default_timeout, RankNames names = {});

/// `shared_memory`: ranks are processes of one host. Memory is anonymous (memfd) and mapped by all, so a killed job
/// leaves nothing behind; a dead process is noticed through its pidfd. Collective over `store`; `name` keeps several
/// communicators on one store apart. A fault of `channel`, if one is given, ends all waits, from the first on; it may
/// join more ranks than these.
/// \throws CommunicatorError if a rank lies on another host or another user's.
std::unique_ptr<Communicator> make_shared_memory_communicator(const KeyValueStore& store, const std::string& name,
                                                              int rank, int world_size,
                                                              std::chrono::milliseconds timeout = default_timeout,
                                                              ControlChannel* channel = nullptr, RankNames names = {});

/// `hierarchical`: ranks of several hosts, as many on each. `inside` joins those of this rank's host, `between` those
/// that have this rank's place in each host; rank = between.rank() * inside.world_size() + inside.rank(). Between hosts
/// each rank moves its share of the bytes only. Sums are taken inside each host first, in rank order, then in the order
/// of the hosts: the same bits on every rank and in every run, but not those of other transports. An error on one rank
/// ends the world. Both outlive it; others may use them too. Memory is the host's, or where both are transports of GPUs
/// that of `device`, of which it takes a share of the largest unit for itself.
std::unique_ptr<Communicator> make_hierarchical_communicator(Communicator& inside, Communicator& between,
                                                             Device device = {});

/// What the ranks bring of their own to an NCCL communicator, all of them or none; for those who also use another
/// binding of NCCL, of the same copy of the library.
struct NcclOrigin {
  std::string unique_id;         ///< the 128 bytes that one rank got from NCCL and gave to all; or empty
  void* communicator = nullptr;  ///< NCCL's handle of a communicator of the same ranks; it is split, and stays theirs
};

/// `nccl`: ranks are GPUs, of any hosts. Pointers are of `device`'s memory, and work is done in the order of the
/// stream; the host waits for peers only at the first call of a kind, in barrier, and in send and receive. Gathers
/// (all_gather, broadcast) and everything else have a queue of their own, so that neither waits for the other. Memory
/// of the host goes through host(), which is `control`: a communicator of the same ranks for host memory, whose timeout
/// is this one's too. It is one-sided where the ranks are on one host. Between hosts what ranks call travels over
/// `channel`, which joins these ranks and maybe more, knows them by control's names(), and outlives the communicator;
/// and all that it joins are told what ends this communicator.
///
/// A thread watches over every rank: within 5 seconds of the death of a rank, of calls that differ between ranks, of an
/// abort, or of an error that NCCL met, all ranks' collectives on the device have ended, and every later call throws
/// PeerLost or CommunicatorError with the reason. What the device has computed since is not to be used.
/// \throws InvalidArgument if `device` is no GPU or two ranks have the same; CommunicatorError without NCCL;
/// DeviceError in a build without CUDA
std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> control, Device device,
                                                     const NcclOrigin& origin = {}, ControlChannel* channel = nullptr);

/// Memory of `device` that register_memory of its NCCL communicator makes the most of. Whole pages of 2 MiB: for few,
/// large pieces. \throws as make_nccl_communicator
std::unique_ptr<MemoryResource> nccl_memory(Device device);

/// `peer`: ranks are GPUs of one host that map each other's memory (NVLink, or PCIe where it lets them). As `nccl`, but
/// without NCCL: what a rank registers is there for its peers' copy engines and kernels (Communicator::peer), and
/// streams of different ranks meet on the device (Communicator::meet), also in graphs that are replayed. Collectives go
/// through memory of its own, some 50 MiB. The host waits for peers in barrier, in register_memory, and in send and
/// receive. Several ranks may have the same GPU, for tests: they must be threads of one process, and none may free
/// device memory while another's stream waits for it, since that waits for the device.
///
/// Errors are those of `nccl`: a thread watches over every rank, and ends waits on the device. A rank whose graph waits
/// for a peer that does not replay its own is found by what the device itself says, after the timeout.
/// \throws InvalidArgument on every rank if one has no GPU, or two can't map each other's memory; DeviceError in a
/// build without CUDA
std::unique_ptr<Communicator> make_peer_communicator(std::unique_ptr<Communicator> control, Device device,
                                                     ControlChannel* channel = nullptr);

/// Whether make_peer_communicator would do for ranks that have these devices. Collective over `control`; the same
/// answer on every rank.
bool can_map_peers(Communicator& control, Device device);

/// Which file to load NCCL from where the process holds no copy yet. Without it the loader searches.
void set_nccl_library(const std::string& path);

/// Called about every 100 ms by a rank that waits on the host, so that an embedding language can raise (Python's
/// KeyboardInterrupt). It may throw. Process-wide; set it once, at start.
void set_interrupt_check(std::function<void()> check);

}  // namespace aliquot
