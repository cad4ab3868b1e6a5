/// \file
/// The interface of a transport: what moves bytes between ranks.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "aliquot/device.h"

namespace aliquot {

class MemoryResource;

/// Names a collective, so that ranks that disagree find out. Two-sided transports compare tags before any byte moves;
/// a mismatch is a CommunicatorError on every rank that quotes both ranks' operations and units.
struct Tag {
  std::string_view operation;  ///< "gather", "reduce", "step", ...
  std::string_view unit;       ///< the unit's name; empty where the operation is about none
};

/// Memory that every rank of a one-sided transport addresses: one part per rank, the parts side by side.
/// Zeroed at the start. Lives as long as any copy of this object.
struct PeerMemory {
  std::shared_ptr<std::byte> base;
  std::size_t part_bytes = 0;

  std::byte* part(int rank) const { return base.get() + static_cast<std::size_t>(rank) * part_bytes; }
  std::byte* whole() const { return base.get(); }
};

/// A counter in PeerMemory that one rank posts and others await. Values only grow.
using Signal = std::uint32_t;

/// What errors call the ranks of a communicator: their numbers in the world, where it joins only some of those.
struct RankNames {
  int first = 0;
  int stride = 1;

  int of(int rank) const noexcept { return first + rank * stride; }
};

/// Collectives and one-sided access among `world_size` ranks. One thread per rank calls it.
///
/// Streams: a call that takes a stream is ordered on it. On a CPU transport everything is done on return.
/// Memory: that of the host, except on the transports whose host() is another communicator: theirs is of the device.
/// Errors: every wait ends. PeerLost names a dead rank, within 2 seconds on CPUs; CommunicatorError tells of a passed
/// deadline, of an abort, or of ranks that disagree. After a PeerLost or an abort the communicator is of no more use.
class Communicator {
 public:
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  virtual ~Communicator() = default;

  int rank() const noexcept { return rank_; }
  int world_size() const noexcept { return world_size_; }
  std::chrono::milliseconds timeout() const noexcept { return timeout_; }
  const RankNames& names() const noexcept { return names_; }
  virtual std::string_view name() const noexcept = 0;
  /// The communicator of the same ranks that moves host memory: this one, where its memory is the host's. A call on
  /// either counts in the one order of calls that the ranks must agree on.
  virtual Communicator& host() noexcept { return *this; }

  /// True where reduce_scatter takes less to other hosts than exchange does, since the ranks of a host add up first.
  virtual bool sums_inside() const noexcept { return false; }

  // Two-sided: every rank calls them, in the same order.

  /// `part` of each rank, in rank order, into `whole` (world_size * part.size() bytes). `part` may lie inside `whole`
  /// at this rank's place.
  virtual void all_gather(const Tag& tag, std::span<const std::byte> part, std::byte* whole, Stream stream = {}) = 0;
  /// Sum over ranks of `whole` (world_size * part.size() elements), this rank's piece into `part`. Added in rank order
  /// in fp32, so every transport gives the same bits.
  virtual void reduce_scatter(const Tag& tag, const float* whole, std::span<float> part, Stream stream = {}) = 0;
  /// Sum over ranks, in rank order in fp32, in place, the same bits on every rank.
  virtual void all_reduce(const Tag& tag, std::span<float> data, Stream stream = {}) = 0;
  /// `data` of `root` to every rank, in place.
  virtual void broadcast(const Tag& tag, std::span<std::byte> data, int root, Stream stream = {}) = 0;
  /// Piece r of `input` goes to rank r; piece r of `output` came from rank r. Both hold world_size * piece_bytes.
  virtual void all_to_all(const Tag& tag, const std::byte* input, std::byte* output, std::size_t piece_bytes,
                          Stream stream = {}) = 0;
  /// all_to_all for callers that have no use for their own piece: that place of `output` may stay as it was.
  virtual void exchange(const Tag& tag, const std::byte* input, std::byte* output, std::size_t piece_bytes,
                        Stream stream = {}) {
    all_to_all(tag, input, output, piece_bytes, stream);
  }
  /// Point to point; the sizes must agree.
  virtual void send(const Tag& tag, std::span<const std::byte> data, int to, Stream stream = {}) = 0;
  virtual void receive(const Tag& tag, std::span<std::byte> data, int from, Stream stream = {}) = 0;
  /// Returns when every rank has called it.
  virtual void barrier(const Tag& tag) = 0;

  /// Makes every rank's present and later waits fail with `reason`. Safe from any thread.
  virtual void abort(std::string_view reason) noexcept = 0;

  /// Throws what has ended this world, if anything has: PeerLost (a rank was killed, whether or not anyone waits for
  /// it) or CommunicatorError. Never waits. Safe from any thread.
  virtual void require_intact();

  /// Tells the transport of memory that collectives will use again and again, so that it may move it faster.
  /// Collective: every rank calls it, in the same order, with the same size. Keep the result as long as the memory, and
  /// no longer than the communicator; null where there is nothing to gain. What a collective is given of the memory
  /// lies at the same place in it on every rank, or, in an all_gather in place, the whole does.
  [[nodiscard]] virtual std::shared_ptr<void> register_memory(std::span<std::byte>) { return nullptr; }
  /// Memory whose pieces register_memory takes, where it takes no other; else null. What peers have mapped of it is
  /// free when they have dropped their registrations too.
  virtual std::unique_ptr<MemoryResource> registrable_memory();

  // Between peers on a device. Only where maps_peers(); elsewhere peer() is null, and meet is InvalidArgument.

  /// True if peer() and meet() are there: on the transport `peer`.
  virtual bool maps_peers() const noexcept { return false; }
  /// Where `rank` has what this rank has at `own`, in memory that was registered: an address for this rank's streams.
  /// Null where nothing is registered. Whoever uses it sees to it, by meetings, that the peer is ready for that.
  virtual const std::byte* peer(int rank, const std::byte* own) const;
  /// `stream` goes on when the streams of all ranks have come to the same meeting: what they were given before is then
  /// done, and visible to what each is given later. Never waits on the host. Meetings on a channel (0 to 7) come in the
  /// same order on every rank, each behind the one before, whichever streams they are of; where one of the two is in a
  /// graph, the caller sees to that. Channels don't wait for each other.
  virtual void meet(const Tag& tag, int channel, Stream stream);
  static constexpr int meeting_channels = 8;

  /// Does `work`, which gives collectives and kernels to streams, behind all work before it: at once, or by a thread of
  /// the transport where a device takes the host long. Until await() of the number that is returned, or of a later one,
  /// what `work` uses (streams, events) is its own. All other calls await all of it themselves.
  virtual std::uint64_t launch(std::function<void()> work);
  /// The work is over, also if this throws: what it or earlier work threw, after which nothing is launched any more.
  virtual void await(std::uint64_t launch);
  static constexpr std::uint64_t every_launch = ~std::uint64_t{0};

  /// What `stream` was given so far, replays of graphs with collectives of this communicator among it, is this rank's
  /// part in them: it does not leave before that is done. Never waits.
  virtual void mark(Stream) {}

  /// Numbers, from 0, those who share this communicator: every rank counts alike.
  std::size_t enlist() noexcept { return enlisted_++; }

  /// Says that this rank is done, as its destructor does: peers that wait for it fail with PeerLost, others go on. No
  /// call comes after it.
  virtual void leave() noexcept {}

  // One-sided: no partner takes part. Only where one_sided() is true; elsewhere InvalidArgument.

  virtual bool one_sided() const noexcept = 0;
  /// Takes `part_bytes` per rank. Collective: every rank calls it, in the same order, with the same size.
  virtual PeerMemory share(std::size_t part_bytes);
  /// Publishes `value`: what this rank wrote before is visible to whoever sees it. `signal` lies in this rank's part.
  virtual void post(Signal& signal, std::uint32_t value);
  /// Blocks the host until `ready()`; `ready` reads signals through `reached` and needs all that it reads, so that the
  /// wait ends if the rank of one that is missing has left. `what` completes "rank 1 waited for ..." in an error.
  virtual void wait_until(const std::function<bool()>& ready, std::string_view what);
  /// True while `rank` waits for peers, in wait_until or in a collective.
  virtual bool waiting(int rank) const;
  /// Adds work that this rank does for its peers whenever it waits for them: ranks that wait for different things still
  /// get each other on. Runs on the waiting thread and must not throw. Keep the result as long as the work is to be
  /// done; it must not outlive the communicator.
  [[nodiscard]] std::shared_ptr<void> add_chore(std::function<void()> chore);

 protected:
  Communicator(int rank, int world_size, std::chrono::milliseconds timeout, RankNames names = {});
  void do_chores() const;

 private:
  int rank_;
  int world_size_;
  std::chrono::milliseconds timeout_;
  RankNames names_;
  std::list<std::function<void()>> chores_;
  std::size_t enlisted_ = 0;
};

/// True once `signal` has been posted with `value` or a later one (values wrap). Acquires what was written before.
bool reached(const Signal& signal, std::uint32_t value) noexcept;

/// Awaits every launch, whatever becomes of it: for destructors of what launched work uses.
void settle(Communicator& communicator) noexcept;

/// How ranks find each other: a map shared by all of them, such as torch's store.
struct KeyValueStore {
  std::function<void(const std::string& key, const std::string& value)> set;
  /// Blocks until the key is set; throws after the store's own timeout.
  std::function<std::string(const std::string& key)> get;
};

}  // namespace aliquot
