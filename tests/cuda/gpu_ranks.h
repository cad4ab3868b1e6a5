/// \file
/// Runs the ranks of a test of the transport `nccl`: threads of this process with a GPU each.
#pragma once

#include <cstddef>
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
#include "tests/cpp/outcomes.h"

namespace aliquot::test {

inline Device gpu_of(int rank) { return {Device::Type::cuda, rank}; }

/// What a rank of such a test works with.
struct GpuRank {
  Communicator& communicator;
  Device device;
  OwnedStream stream{device, Priority::low};
  OwnedStream other_stream{device, Priority::low};
};
using GpuBody = std::function<void(GpuRank&)>;

inline void use_the_nccl_of_the_build() {
#ifdef ALIQUOT_NCCL_LIBRARY
  set_nccl_library(ALIQUOT_NCCL_LIBRARY);
#endif
}

/// Makes rank `rank`'s communicator out of `control` and runs `body` with it.
inline void live_on_gpu(std::unique_ptr<Communicator> control, const GpuBody& body) {
  use_the_nccl_of_the_build();
  const Device device = gpu_of(control->rank());
  const DeviceGuard guard(device);
  const auto communicator = make_nccl_communicator(std::move(control), device);
  GpuRank rank{*communicator, device};
  body(rank);
}

inline std::vector<Outcome> run_on_gpus(int world_size, const GpuBody& body,
                                        std::chrono::milliseconds timeout = patience) {
  auto controls = make_thread_communicators(world_size, timeout);
  std::vector<Outcome> outcomes(controls.size());
  std::vector<std::jthread> threads;
  for (std::size_t r = 0; r < outcomes.size(); ++r) {
    threads.emplace_back([&body, &outcome = outcomes[r], control = std::move(controls[r])]() mutable {
      outcome.message = message_of([&] { live_on_gpu(std::move(control), body); });
    });
  }
  threads.clear();
  return outcomes;
}

/// Bytes in a GPU's memory.
class GpuBytes {
 public:
  GpuBytes(Device device, std::size_t bytes) : GpuBytes(device_memory(device), bytes) {}
  GpuBytes(std::unique_ptr<MemoryResource> memory, std::size_t bytes)
      : memory_(std::move(memory)), buffer_(*memory_, bytes) {}
  GpuBytes(Device device, std::span<const std::byte> values, Stream stream) : GpuBytes(device, values.size()) {
    copy_async(data(), values.data(), values.size(), stream);
    synchronize(stream);
  }

  std::byte* data() const { return buffer_.data(); }
  std::span<std::byte> span() const { return {data(), buffer_.bytes()}; }
  float* floats() const { return reinterpret_cast<float*>(data()); }

  /// After everything given to `stream`.
  std::vector<std::byte> values(Stream stream) const {
    std::vector<std::byte> host(buffer_.bytes());
    copy_async(host.data(), data(), host.size(), stream);
    synchronize(stream);
    return host;
  }

 private:
  std::unique_ptr<MemoryResource> memory_;
  Buffer buffer_;
};

}  // namespace aliquot::test
