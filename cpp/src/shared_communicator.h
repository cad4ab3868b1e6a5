/// \file
/// The transports `thread` and `shared_memory`: ranks that map the same memory, be they threads or processes.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/control.h"
#include "process.h"
#include "shared_memory.h"
#include "shared_world.h"
#include "waiter.h"

namespace aliquot {

class SharedCommunicator final : public Communicator {
 public:
  /// `control` holds SharedWorld::bytes(world_size) bytes, zeros at first. `peers`: see Waiter.
  SharedCommunicator(std::string_view name, std::shared_ptr<SharedMemory> control, int rank, int world_size,
                     std::chrono::milliseconds timeout, std::vector<std::optional<Process>> peers, RankNames names);
  ~SharedCommunicator() override;

  /// Ends all waits when `channel` has a fault.
  void follow(ControlChannel& channel);

  std::string_view name() const noexcept override { return name_; }
  bool one_sided() const noexcept override { return true; }

  void all_gather(const Tag& tag, std::span<const std::byte> part, std::byte* whole, Stream stream) override;
  void reduce_scatter(const Tag& tag, const float* whole, std::span<float> part, Stream stream) override;
  void all_reduce(const Tag& tag, std::span<float> data, Stream stream) override;
  void broadcast(const Tag& tag, std::span<std::byte> data, int root, Stream stream) override;
  void all_to_all(const Tag& tag, const std::byte* input, std::byte* output, std::size_t piece_bytes,
                  Stream stream) override;
  void send(const Tag& tag, std::span<const std::byte> data, int to, Stream stream) override;
  void receive(const Tag& tag, std::span<std::byte> data, int from, Stream stream) override;
  void barrier(const Tag& tag) override;

  void abort(std::string_view reason) noexcept override;
  void leave() noexcept override;
  void require_intact() override { waiter_.look(); }

  PeerMemory share(std::size_t part_bytes) override;
  void post(Signal& signal, std::uint32_t value) override;
  void wait_until(const std::function<bool()>& ready, std::string_view what) override;
  bool waiting(int rank) const override;

 private:
  /// Ranks that call collectives together, all of them or two, with one lane each.
  struct Group {
    std::vector<int> ranks;
    std::vector<Lane*> lanes;
    std::size_t self;  ///< this rank's index in both
    std::size_t buffer_bytes;
    std::uint32_t round = 0;
    std::uint64_t calls = 0;

    Envelope& envelope(std::size_t member) const { return lanes[member]->envelopes[round % 2]; }
    std::byte* buffer(std::size_t member) const {
      return reinterpret_cast<std::byte*>(lanes[member] + 1) + round % 2 * buffer_bytes;
    }
  };

  Group group_of_all() const;
  Group group_with(int peer) const;
  Group& pair(const char* call, int peer);

  static Envelope begin(Group& group, std::string_view collective, const Tag& tag, std::size_t size,
                        int named_root = -1);
  template <typename Write, typename Read>
  void round(Group& group, const Envelope& call, const Write& write, const Read& read);
  void require_agreement(const Group& group) const;
  /// `sender`'s `data` into everyone else's `into`; data.size() is the same for all.
  void pass(Group& group, const Envelope& call, std::size_t sender, std::span<const std::byte> data, std::byte* into);
  std::size_t longest_piece(std::size_t element_bytes) const;

  /// Any wait for peers: says that this rank waits, and does its chores.
  void wait(const std::function<bool()>& ready, const Sentence& what);
  /// Rank 0 makes memory for all; the others map it.
  std::shared_ptr<SharedMemory> offer(std::size_t part_bytes);
  std::shared_ptr<SharedMemory> map_or_abort(const std::function<std::shared_ptr<SharedMemory>()>& map);

  std::string_view name_;
  std::shared_ptr<SharedMemory> control_;
  SharedWorld world_;
  Waiter waiter_;
  pid_t creator_;
  Group all_;
  std::vector<Group> pairs_;
  std::shared_ptr<void> following_;  // the last: it uses the others
};

}  // namespace aliquot
