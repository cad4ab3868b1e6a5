#include <cuda_runtime_api.h>

#include <list>
#include <string>

#include "aliquot/streams.h"
#include "cuda/launch.h"
#include "cuda/nccl_communicator.h"
#include "rank.h"

namespace aliquot {
namespace {

constexpr auto bytes = nccl::DataType::uint8;

}  // namespace

void NcclCommunicator::all_gather(const Tag& tag, std::span<const std::byte> part, std::byte* whole, Stream stream) {
  say("all_gather", tag, part.size());
  if (part.empty()) return raise_failure();
  enqueue(gathers_, "all-gather", stream, [&](nccl::Comm comm) {
    return api_.all_gather(part.data(), whole, part.size(), bytes, comm, cuda::native(stream));
  });
}

void NcclCommunicator::broadcast(const Tag& tag, std::span<std::byte> data, int root, Stream stream) {
  require_rank(root, world_size());
  say("broadcast", tag, data.size(), root);
  if (data.empty()) return raise_failure();
  enqueue(gathers_, "broadcast", stream, [&](nccl::Comm comm) {
    return api_.broadcast(data.data(), data.data(), data.size(), bytes, root, comm, cuda::native(stream));
  });
}

void NcclCommunicator::exchange(const Tag& tag, const std::byte* input, std::byte* output, std::size_t piece_bytes,
                                Stream stream) {
  say("exchange", tag, piece_bytes);
  trade_pieces(input, output, piece_bytes, stream);
}

void NcclCommunicator::all_to_all(const Tag& tag, const std::byte* input, std::byte* output, std::size_t piece_bytes,
                                  Stream stream) {
  say("all_to_all", tag, piece_bytes);
  const std::size_t own = static_cast<std::size_t>(rank()) * piece_bytes;
  copy_async(output + own, input + own, piece_bytes, stream);
  trade_pieces(input, output, piece_bytes, stream);
}

void NcclCommunicator::trade_pieces(const std::byte* input, std::byte* output, std::size_t piece_bytes, Stream stream) {
  if (piece_bytes == 0 || world_size() == 1) return raise_failure();
  enqueue(others_, "exchange pieces", stream, [&](nccl::Comm comm) {
    nccl::Result result = api_.group_start();
    for (int step = 1; step < world_size() && result == nccl::Result::success; ++step) {
      const int to = (rank() + step) % world_size();
      const int from = (rank() + world_size() - step) % world_size();
      result = api_.send(input + static_cast<std::size_t>(to) * piece_bytes, piece_bytes, bytes, to, comm,
                         cuda::native(stream));
      if (result != nccl::Result::success) break;
      result = api_.receive(output + static_cast<std::size_t>(from) * piece_bytes, piece_bytes, bytes, from, comm,
                            cuda::native(stream));
    }
    const nccl::Result ended = api_.group_end();
    return result == nccl::Result::success ? ended : result;
  });
}

void NcclCommunicator::send(const Tag& tag, std::span<const std::byte> data, int to, Stream stream) {
  agree(tag, data.size(), rank(), to);
  if (data.empty()) return;
  enqueue(others_, "send", stream,
          [&](nccl::Comm comm) { return api_.send(data.data(), data.size(), bytes, to, comm, cuda::native(stream)); });
}

void NcclCommunicator::receive(const Tag& tag, std::span<std::byte> data, int from, Stream stream) {
  agree(tag, data.size(), from, rank());
  if (data.empty()) return;
  enqueue(others_, "receive", stream, [&](nccl::Comm comm) {
    return api_.receive(data.data(), data.size(), bytes, from, comm, cuda::native(stream));
  });
}

namespace {

/// A registration with a queue's communicator, taken back with the object once the device has done its work.
struct Registration {
  Registration(nccl::Link& link, Device device) : link(link), device(device) {}
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;
  ~Registration() {
    if (window == nullptr) return;
    try {
      const DeviceGuard guard(device);
      link.call("forget memory", [this](nccl::Comm comm) {
        cudaDeviceSynchronize();
        return nccl::api().deregister_window(comm, window);
      });
    } catch (...) {  // the link has ended, and its registrations with it
    }
  }

  nccl::Link& link;
  Device device;
  /// NCCL writes here when it is done, which may be after whoever registered has lost patience: never freed.
  nccl::Window& window = *new nccl::Window(nullptr);
};

}  // namespace

std::shared_ptr<void> NcclCommunicator::register_memory(std::span<std::byte> memory) {
  if (api_.register_window == nullptr || memory.empty() || world_size() == 1) return nullptr;
  host().barrier({"register", std::to_string(memory.size()) + " bytes"});
  auto registrations = std::make_shared<std::list<Registration>>();
  for (Queue* queue : {&gathers_, &others_}) {
    nccl::Window& window = registrations->emplace_back(queue->link, device()).window;
    call(*queue, "register memory", [&](nccl::Comm comm) {
      return api_.register_window(comm, memory.data(), memory.size(), &window, nccl::window_symmetric);
    });
  }
  return registrations;
}

}  // namespace aliquot
