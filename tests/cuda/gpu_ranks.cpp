#include "gpu_ranks.h"

#include <array>
#include <chrono>
#include <mutex>
#include <thread>

#include "aliquot/device_kernels.h"
#include "tests/cuda/busy.h"

namespace aliquot::test {
namespace {

/// As many ranks as reduce() has forms of its kernel.
template <std::size_t ranks>
void load_sum(GpuRank& rank) {
  const GpuBytes data(rank, 1024), rest(rank, 256 + cuda::reduce_workspace_bytes());
  std::array<const void*, ranks> parts{};
  parts.fill(data.data());
  cuda::reduce(parts, DType::fp32, 1.0F, data.data(), DType::fp32, 256, Accumulate::no,
               reinterpret_cast<cuda::DeviceStatistics*>(rest.data()), rest.data() + 256, rank.stream.get());
  synchronize(rank.stream.get());
}

void load_all(GpuRank& rank) {
  const Stream stream = rank.stream.get();
  rank.communicator.meet({"load", ""}, 0, stream);
  load_sum<2>(rank);
  load_sum<3>(rank);
  const GpuBytes data(rank, 1024);
  linger(1, stream);
  axpy(1, data.floats(), data.floats(), 1, stream);
  fill_async(data.data(), 0, 3, stream);
  synchronize(stream);
}

}  // namespace

void await_error(GpuRank& rank) {
  synchronize(rank.stream.get());
  synchronize(rank.other_stream.get());
  for (const auto end = std::chrono::steady_clock::now() + patience; std::chrono::steady_clock::now() < end;) {
    rank.communicator.require_intact();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void load_kernels() {
  static std::once_flag once;
  std::call_once(once, [] {
    for (int index = 0; index < cuda_device_count(); ++index) {
      const Device device{Device::Type::cuda, index};
      const DeviceGuard guard(device);
      const auto alone = make_peer_communicator(std::move(make_thread_communicators(1).front()), device);
      GpuRank rank{*alone, device};
      load_all(rank);
    }
  });
}

}  // namespace aliquot::test
