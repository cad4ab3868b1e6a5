/// \file
/// The transport `nccl`.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "aliquot/transports.h"
#include "cuda/backlog.h"
#include "cuda/nccl_link.h"
#include "cuda/progress.h"
#include "cuda/watched_communicator.h"

namespace aliquot {

/// See make_nccl_communicator.
class NcclCommunicator final : public WatchedCommunicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> control, Device device, const NcclOrigin& origin,
                   ControlChannel* channel);
  ~NcclCommunicator() override;

  std::string_view name() const noexcept override { return "nccl"; }

  void all_gather(const Tag& tag, std::span<const std::byte> part, std::byte* whole, Stream stream) override;
  void reduce_scatter(const Tag& tag, const float* whole, std::span<float> part, Stream stream) override;
  void all_reduce(const Tag& tag, std::span<float> data, Stream stream) override;
  void broadcast(const Tag& tag, std::span<std::byte> data, int root, Stream stream) override;
  void all_to_all(const Tag& tag, const std::byte* input, std::byte* output, std::size_t piece_bytes,
                  Stream stream) override;
  void exchange(const Tag& tag, const std::byte* input, std::byte* output, std::size_t piece_bytes,
                Stream stream) override;
  void send(const Tag& tag, std::span<const std::byte> data, int to, Stream stream) override;
  void receive(const Tag& tag, std::span<std::byte> data, int from, Stream stream) override;

  std::shared_ptr<void> register_memory(std::span<std::byte> memory) override;

 private:
  /// A communicator of NCCL, and what becomes of the work that it is given.
  struct Queue {
    nccl::Link link;
    cuda::Progress progress;
    cuda::Backlog backlog;
  };
  using Call = std::function<nccl::Result(nccl::Comm)>;

  void look_at_device() override;
  bool idle() override { return gathers_.progress.done() && others_.progress.done(); }
  void abort_device() noexcept override;
  void await_abort() noexcept override;

  nccl::Patience patience();
  /// Makes a call of NCCL, on the thread that launches.
  void call(Queue& queue, const char* what, const Call& call);
  /// The same for one that works on `stream`.
  void enqueue(Queue& queue, const char* what, Stream stream, const Call& call);
  /// Returns when the device has room for one more collective.
  void await_room(Queue& queue);
  void trade_pieces(const std::byte* input, std::byte* output, std::size_t piece_bytes, Stream stream);

  const nccl::Api& api_;
  Queue gathers_;
  Queue others_;
};

}  // namespace aliquot
