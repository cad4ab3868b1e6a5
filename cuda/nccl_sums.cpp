// Sums by the same order of additions as on the CPU transports: pieces are moved, and one kernel adds them.

#include <vector>

#include "aliquot/device_kernels.h"
#include "aliquot/streams.h"
#include "cuda/launch.h"
#include "cuda/nccl_communicator.h"

namespace aliquot {
namespace {

/// Memory for the length of a call, taken and given back in the order of the stream.
class Scratch {
 public:
  Scratch(Device device, std::size_t bytes, Stream stream) : guard_(device), stream_(stream) {
    void* data = nullptr;
    cuda::check(cudaMallocAsync(&data, bytes, cuda::native(stream)), "allocate the pieces of a sum");
    data_ = static_cast<std::byte*>(data);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { cudaFreeAsync(data_, cuda::native(stream_)); }

  std::byte* data() const { return data_; }

 private:
  DeviceGuard guard_;
  Stream stream_;
  std::byte* data_;
};

std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

std::size_t scratch_bytes(std::size_t part_bytes, int world_size) {
  return aligned(part_bytes * static_cast<std::size_t>(world_size)) + 256 + cuda::reduce_workspace_bytes();
}

/// `pieces`, one per rank, one after the other; behind them lies what the kernel needs.
void add_in_rank_order(std::byte* pieces, int world_size, std::span<float> sum, Stream stream) {
  std::vector<const void*> parts;
  for (int r = 0; r < world_size; ++r) parts.push_back(pieces + static_cast<std::size_t>(r) * sum.size_bytes());
  std::byte* const rest = pieces + aligned(sum.size_bytes() * parts.size());
  fill_async(rest, 0, 256 + cuda::reduce_workspace_bytes(), stream);
  cuda::reduce(parts, DType::fp32, 1.0F, sum.data(), DType::fp32, sum.size(), Accumulate::no,
               reinterpret_cast<cuda::DeviceStatistics*>(rest), rest + 256, stream);
}

}  // namespace

void NcclCommunicator::reduce_scatter(const Tag& tag, const float* whole, std::span<float> part, Stream stream) {
  say("reduce_scatter", tag, part.size());
  if (part.empty()) return raise_failure();
  const Scratch pieces(device(), scratch_bytes(part.size_bytes(), world_size()), stream);
  const std::size_t own = static_cast<std::size_t>(rank()) * part.size_bytes();
  copy_async(pieces.data() + own, whole + static_cast<std::size_t>(rank()) * part.size(), part.size_bytes(), stream);
  trade_pieces(reinterpret_cast<const std::byte*>(whole), pieces.data(), part.size_bytes(), stream);
  add_in_rank_order(pieces.data(), world_size(), part, stream);
}

// On the queue of sums, though its bytes are gathered: it must not wait for a gather of parameters.
void NcclCommunicator::all_reduce(const Tag& tag, std::span<float> data, Stream stream) {
  say("all_reduce", tag, data.size());
  if (data.empty()) return raise_failure();
  const Scratch pieces(device(), scratch_bytes(data.size_bytes(), world_size()), stream);
  enqueue(others_, "all-reduce", stream, [&](nccl::Comm comm) {
    return api_.all_gather(data.data(), pieces.data(), data.size_bytes(), nccl::DataType::uint8, comm,
                           cuda::native(stream));
  });
  add_in_rank_order(pieces.data(), world_size(), data, stream);
}

}  // namespace aliquot
