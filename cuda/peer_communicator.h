/// \file
/// The transport `peer`.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "cuda/peer_world.h"
#include "cuda/progress.h"
#include "cuda/watched_communicator.h"

namespace aliquot {

/// See make_peer_communicator.
class PeerCommunicator final : public WatchedCommunicator {
 public:
  PeerCommunicator(std::unique_ptr<Communicator> control, Device device, ControlChannel* channel);
  ~PeerCommunicator() override;

  std::string_view name() const noexcept override { return "peer"; }

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

  std::unique_ptr<MemoryResource> registrable_memory() override;
  std::shared_ptr<void> register_memory(std::span<std::byte> memory) override;
  bool maps_peers() const noexcept override { return true; }
  const std::byte* peer(int rank, const std::byte* own) const override;
  void meet(const Tag& tag, int channel, Stream stream) override;
  void mark(Stream stream) override;

 private:
  /// Work of one kind, which is done in one order and meets on a channel of its own.
  struct Queue {
    Queue(int number, Device device) : channel(number), progress(device) {}
    int channel;
    cuda::Progress progress;
  };
  /// The queues that have staging come first, so that their number is that of their staging.
  enum : int { gathers, others, pairs, first_of_callers };
  static_assert(first_of_callers == cuda::PeerWorld::staging_queues);

  /// Part of what a collective moves, of the same length on every rank.
  struct Piece {
    std::size_t begin;
    std::size_t bytes;
    std::byte* staging;  ///< this rank's
  };
  using Move = std::function<void(const Piece&)>;

  void look_at_device() override;
  bool idle() override;
  void abort_device() noexcept override { world_->meetings().abort(); }
  void await_abort() noexcept override;
  /// Whether the device uses nothing of world_ any more.
  bool let_go() noexcept;

  static std::string what_is_done_on(int channel);
  cuda::Ranks everyone() const { return {0, world_size()}; }
  /// The peers, this rank's successor first, so that not all ranks read from the same one.
  std::vector<int> peers_in_turn() const;
  /// Does `work` on `stream`, behind what the queue was given before.
  void enqueue(int queue, Stream stream, const std::function<void()>& work);
  /// Puts, meets and takes piece by piece. \param longest  bytes of a piece
  void by_pieces(int queue, cuda::Ranks ranks, std::size_t bytes, std::size_t longest, Stream stream, const Move& put,
                 const Move& take);
  void trade_pieces(const std::byte* input, std::byte* output, std::size_t piece_bytes, Stream stream);
  void pull(std::span<const std::byte> part, std::byte* whole, Stream stream);
  /// Staging is cut into as many places as there are ranks.
  std::size_t place_bytes() const;
  /// Puts what `rank` is to have of `piece` at its place.
  void put_for_each(const Piece& piece, const std::byte* input, std::size_t piece_bytes, Stream stream) const;
  /// `sum` = what every rank has at `staging`, added.
  void add_up(const std::byte* staging, std::span<float> sum, Stream stream) const;
  const std::byte* at(int rank, const std::byte* staging) const { return world_->regions().find(rank, staging); }

  std::unique_ptr<cuda::PeerWorld> world_;
  std::deque<Queue> queues_;
};

}  // namespace aliquot
