/// \file
/// The transport `nccl`.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string_view>
#include <thread>

#include "aliquot/communicator.h"
#include "aliquot/transports.h"
#include "cuda/nccl_link.h"
#include "cuda/progress.h"
#include "failure.h"
#include "watch.h"
#include "watched_host.h"

namespace aliquot {

/// See make_nccl_communicator.
class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> control, Device device, const NcclOrigin& origin);
  ~NcclCommunicator() override;

  std::string_view name() const noexcept override { return "nccl"; }
  bool one_sided() const noexcept override { return false; }
  Communicator& host() noexcept override { return host_; }

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
  void barrier(const Tag& tag) override { host_.barrier(tag); }

  void require_intact() override;
  std::shared_ptr<void> register_memory(std::span<std::byte> memory) override;
  void abort(std::string_view reason) noexcept override;
  void leave() noexcept override;

 private:
  /// A communicator of NCCL, and what becomes of the work that it is given.
  struct Queue {
    nccl::Link link;
    cuda::Progress progress;
  };
  using Call = std::function<nccl::Result(nccl::Comm)>;

  nccl::Patience patience();
  /// Makes a call of NCCL; what goes wrong with it ends the world.
  void call(Queue& queue, const char* what, const Call& call);
  /// The same for one that works on `stream`.
  void enqueue(Queue& queue, const char* what, Stream stream, const Call& call);
  void trade_pieces(const std::byte* input, std::byte* output, std::size_t piece_bytes, Stream stream);
  /// Both partners get here with the same size, or both throw.
  void meet(const Tag& tag, std::size_t bytes, int from, int to);

  void watch(const std::stop_token& stop) noexcept;
  void look();
  /// Remembers what `check` throws, and says whether it did.
  bool fails(const std::function<void()>& check) noexcept;
  /// Ends the world for all ranks, and what runs on the device; `text` is the reason unless there was one already.
  void end(std::string_view text) noexcept;
  bool drain() noexcept;

  std::unique_ptr<Communicator> control_;
  Device device_;
  const nccl::Api& api_;
  pid_t creator_;
  Failure failure_{};
  Watch watch_;
  WatchedHost host_;
  Queue gathers_;
  Queue others_;
  std::atomic<bool> left_ = false;
  std::mutex sleep_mutex_;
  std::condition_variable_any wake_;
  std::jthread watcher_;
};

}  // namespace aliquot
