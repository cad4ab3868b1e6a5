/// \file
/// Runs the ranks of a test of a transport of GPUs: threads of this process with a GPU each, or, on `peer` where there
/// are fewer GPUs, taking turns.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "aliquot/memory_resource.h"
#include "aliquot/streams.h"
#include "aliquot/transports.h"
#include "tests/cpp/hosts.h"
#include "tests/cpp/outcomes.h"
#include "tests/cuda/pooled_memory.h"

namespace aliquot::test {

/// The last is nccl between two hosts, and peer inside.
enum class GpuTransport { nccl, peer, hierarchical };

inline const char* name_of(GpuTransport transport) {
  return transport == GpuTransport::nccl ? "nccl" : transport == GpuTransport::peer ? "peer" : "hierarchical";
}

/// How many GPUs a test of `world_size` ranks needs.
inline int gpus_needed(GpuTransport transport, int world_size) {
  return transport == GpuTransport::peer ? 1 : world_size;
}

inline Device gpu_of(int rank) { return {Device::Type::cuda, rank % std::max(1, cuda_device_count())}; }

/// What a rank of such a test works with.
struct GpuRank {
  Communicator& communicator;
  Device device;
  OwnedStream stream{device, Priority::low};
  OwnedStream other_stream{device, Priority::low};
};

/// What was given to the rank's streams comes to an end, and the communicator says why that was not the end of the
/// work.
void await_error(GpuRank& rank);

using GpuBody = std::function<void(GpuRank&)>;

inline void use_the_nccl_of_the_build() {
#ifdef ALIQUOT_NCCL_LIBRARY
  set_nccl_library(ALIQUOT_NCCL_LIBRARY);
#endif
}

inline std::unique_ptr<Communicator> make_communicator(GpuTransport transport, std::unique_ptr<Communicator> control,
                                                       Device device) {
  if (transport == GpuTransport::peer) return make_peer_communicator(std::move(control), device);
  use_the_nccl_of_the_build();
  return make_nccl_communicator(std::move(control), device);
}

/// Makes rank `rank`'s communicator out of `control` and runs `body` with it.
inline void live_on_gpu(std::unique_ptr<Communicator> control, const GpuBody& body,
                        GpuTransport transport = GpuTransport::nccl) {
  const Device device = gpu_of(control->rank());
  const DeviceGuard guard(device);
  const auto communicator = make_communicator(transport, std::move(control), device);
  GpuRank rank{*communicator, device};
  body(rank);
}

/// Streams of ranks that have one GPU must not stand behind each other in one queue of the device. Read by the driver
/// when it starts.
inline const int queues_of_a_device = setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);

/// Loads the kernels that ranks use. The first use of one waits for the device, and so for a meeting of ranks that have
/// the same GPU. Once for the process.
void load_kernels();

/// Of a rank of two hosts: `inside` is on peer, `between`, which joins those of the same place, on nccl.
using GpuHostBody = std::function<void(GpuRank& inside, Communicator& between)>;

inline std::vector<Outcome> run_on_gpus_of_hosts(int world_size, const GpuHostBody& body,
                                                 std::chrono::milliseconds timeout = patience) {
  const int places = world_size / 2;
  const auto live = [&](std::unique_ptr<Communicator> host, std::unique_ptr<Communicator> counterparts) {
    const Device device = gpu_of(counterparts->rank() * places + host->rank());
    const DeviceGuard guard(device);
    const auto inside = make_communicator(GpuTransport::peer, std::move(host), device);
    const auto between = make_communicator(GpuTransport::nccl, std::move(counterparts), device);
    GpuRank rank{*inside, device};
    body(rank, *between);
  };
  return run_hosts(2, places, HostMaker(live), timeout);
}

inline std::vector<Outcome> run_on_gpus(int world_size, const GpuBody& body,
                                        std::chrono::milliseconds timeout = patience,
                                        GpuTransport transport = GpuTransport::nccl) {
  if (cuda_device_count() < world_size) load_kernels();
  if (transport == GpuTransport::hierarchical) {
    const auto with_both = [&](GpuRank& inside, Communicator& between) {
      const auto world = make_hierarchical_communicator(inside.communicator, between, inside.device);
      GpuRank rank{*world, inside.device};
      body(rank);
    };
    return run_on_gpus_of_hosts(world_size, with_both, timeout);
  }
  auto controls = make_thread_communicators(world_size, timeout);
  std::vector<Outcome> outcomes(controls.size());
  std::vector<std::jthread> threads;
  for (std::size_t r = 0; r < outcomes.size(); ++r) {
    threads.emplace_back([&body, transport, &outcome = outcomes[r], control = std::move(controls[r])]() mutable {
      outcome.message = message_of([&] { live_on_gpu(std::move(control), body, transport); });
    });
  }
  threads.clear();
  return outcomes;
}

// Processes that are forked can use CUDA only if their parent has not; ctest runs every test in a process of its own.
inline int gpus_that_a_fork_sees() {
  const pid_t child = fork();
  if (child == 0) _exit(cuda_device_count());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 0;
}

/// What a test of `communicator` puts into a GPU's memory. NCCL's threads of one process read each other's memory only
/// where it is plain.
inline std::unique_ptr<MemoryResource> memory_for(const GpuRank& rank) {
  return rank.communicator.name() == "peer" ? pooled_memory(rank.device) : device_memory(rank.device);
}

/// Bytes in a GPU's memory. A copy to or from pageable memory holds, while it waits for its stream, what the other
/// ranks' copies need; so the stream is awaited before it is given one: it may wait for a peer that has still to copy.
class GpuBytes {
 public:
  GpuBytes(Device device, std::size_t bytes) : GpuBytes(device_memory(device), bytes) {}
  GpuBytes(const GpuRank& rank, std::size_t bytes) : GpuBytes(memory_for(rank), bytes) {}
  GpuBytes(std::unique_ptr<MemoryResource> memory, std::size_t bytes)
      : memory_(std::move(memory)), buffer_(*memory_, bytes) {}
  GpuBytes(Device device, std::span<const std::byte> values, Stream stream)
      : GpuBytes(device_memory(device), values, stream) {}
  GpuBytes(const GpuRank& rank, std::span<const std::byte> values, Stream stream)
      : GpuBytes(memory_for(rank), values, stream) {}
  GpuBytes(std::unique_ptr<MemoryResource> memory, std::span<const std::byte> values, Stream stream)
      : GpuBytes(std::move(memory), values.size()) {
    synchronize(stream);
    copy_async(data(), values.data(), values.size(), stream);
    synchronize(stream);
  }

  std::byte* data() const { return buffer_.data(); }
  std::span<std::byte> span() const { return {data(), buffer_.bytes()}; }
  float* floats() const { return reinterpret_cast<float*>(data()); }

  /// After everything given to `stream`.
  std::vector<std::byte> values(Stream stream) const {
    std::vector<std::byte> host(buffer_.bytes());
    synchronize(stream);
    copy_async(host.data(), data(), host.size(), stream);
    synchronize(stream);
    return host;
  }

 private:
  std::unique_ptr<MemoryResource> memory_;
  Buffer buffer_;
};

}  // namespace aliquot::test
