#include "shared_communicator.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <span>
#include <string>

#include "aliquot/error.h"

namespace aliquot {

SharedCommunicator::SharedCommunicator(std::string_view name, std::shared_ptr<SharedMemory> control, int rank,
                                       int world_size, std::chrono::milliseconds timeout,
                                       std::vector<std::optional<Process>> peers, RankNames names)
    : Communicator(rank, world_size, timeout, names), name_(name), control_(std::move(control)),
      world_(control_->data(), world_size), waiter_(world_, rank, std::move(peers), timeout, names), creator_(getpid()),
      all_(group_of_all()) {
  for (int peer = 0; peer < world_size; ++peer) pairs_.push_back(group_with(peer));
  waiter_.know({std::shared_ptr<std::byte>(control_, world_.parts()), SharedWorld::part_bytes(world_size)});
}

SharedCommunicator::~SharedCommunicator() { SharedCommunicator::leave(); }

void SharedCommunicator::follow(ControlChannel& channel) {
  following_ = channel.on_fault([this](int lost, const std::string& text) { waiter_.fail(lost, text); });
}

// A process forked off a rank inherits the object, but is not the rank.
void SharedCommunicator::leave() noexcept {
  if (getpid() != creator_) return;
  std::atomic_ref(world_.state(rank()).left).store(1, std::memory_order_release);
  world_.doorbell().ring();
}

void SharedCommunicator::abort(std::string_view reason) noexcept {
  try {
    waiter_.fail(-1, "rank " + std::to_string(names().of(rank())) + " aborted: " + std::string(reason));
  } catch (...) {  // no memory for the sentence
    waiter_.fail(-1, reason);
  }
}

void SharedCommunicator::post(Signal& signal, std::uint32_t value) {
  std::atomic_ref(signal).store(value, std::memory_order_release);
  world_.doorbell().ring();
}

void SharedCommunicator::wait_until(const std::function<bool()>& ready, std::string_view what) {
  wait(ready, [&] { return std::string(what); });
}

void SharedCommunicator::wait(const std::function<bool()>& ready, const Sentence& what) {
  if (ready()) return waiter_.require_intact();
  struct Waiting {
    explicit Waiting(SharedCommunicator& communicator) : communicator(communicator) { say(1); }
    ~Waiting() { say(0); }
    void say(std::uint32_t value) { communicator.post(communicator.world_.state(communicator.rank()).waiting, value); }
    SharedCommunicator& communicator;
  };
  const Waiting waiting(*this);
  const auto chores_then_ready = [&] {
    do_chores();
    return ready();
  };
  waiter_.wait(chores_then_ready, what);
}

bool SharedCommunicator::waiting(int rank) const {
  return std::atomic_ref(world_.state(rank).waiting).load(std::memory_order_acquire) != 0;
}

// The memory is an anonymous file of its own, open only until every rank has mapped it: it is freed with its last
// mapping, and processes forked later inherit no descriptor.
PeerMemory SharedCommunicator::share(std::size_t part_bytes) {
  const auto memory = offer(part_bytes);
  barrier({"share", ""});
  memory->close_file();
  PeerMemory shared{std::shared_ptr<std::byte>(memory, memory->data()), part_bytes};
  waiter_.know(shared);
  return shared;
}

std::shared_ptr<SharedMemory> SharedCommunicator::offer(std::size_t part_bytes) {
  struct Offer {
    pid_t creator;
    int file;
  };
  if (part_bytes > std::numeric_limits<std::ptrdiff_t>::max() / all_.lanes.size()) {
    throw OutOfMemory("share: " + std::to_string(part_bytes) + " bytes for each of " + std::to_string(world_size()) +
                      " ranks are more than can be addressed");
  }
  const std::size_t bytes = std::max<std::size_t>(part_bytes * all_.lanes.size(), 1);
  std::shared_ptr<SharedMemory> memory;
  if (rank() == 0) memory = map_or_abort([&] { return SharedMemory::create(bytes); });
  Offer offered{creator_, memory ? memory->file() : -1};
  const auto bytes_of_offer = std::as_writable_bytes(std::span(&offered, 1));
  pass(all_, begin(all_, "share", {"share", ""}, part_bytes), 0, bytes_of_offer, bytes_of_offer.data());
  if (memory) return memory;
  return map_or_abort([&] { return SharedMemory::open(offered.creator, offered.file, bytes); });
}

std::shared_ptr<SharedMemory> SharedCommunicator::map_or_abort(
    const std::function<std::shared_ptr<SharedMemory>()>& map) {
  try {
    return map();
  } catch (const Error& error) {
    waiter_.rule_out_death(0, [] { return std::string("its shared memory"); });
    abort(error.what());
    throw;
  }
}

SharedCommunicator::Group SharedCommunicator::group_of_all() const {
  Group group{.ranks = {},
              .lanes = {},
              .self = static_cast<std::size_t>(rank()),
              .buffer_bytes = SharedWorld::all_buffer_bytes};
  for (int r = 0; r < world_size(); ++r) {
    group.ranks.push_back(r);
    group.lanes.push_back(&world_.lane(r));
  }
  return group;
}

SharedCommunicator::Group SharedCommunicator::group_with(int peer) const {
  const int low = std::min(peer, rank());
  const int high = std::max(peer, rank());
  return {.ranks = {low, high},
          .lanes = {&world_.lane(low, high), &world_.lane(high, low)},
          .self = rank() == low ? 0u : 1u,
          .buffer_bytes = SharedWorld::pair_buffer_bytes};
}

}  // namespace aliquot
