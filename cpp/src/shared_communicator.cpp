#include "shared_communicator.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>

#include "aliquot/error.h"

namespace aliquot {

SharedCommunicator::SharedCommunicator(std::string_view name, std::shared_ptr<SharedMemory> control, int rank,
                                       int world_size, std::chrono::milliseconds timeout,
                                       std::vector<std::optional<Process>> peers)
    : Communicator(rank, world_size, timeout),
      name_(name),
      control_(std::move(control)),
      world_(control_->data(), world_size),
      waiter_(world_, rank, std::move(peers), timeout),
      creator_(getpid()),
      all_(group_of_all()) {
  for (int peer = 0; peer < world_size; ++peer) pairs_.push_back(group_with(peer));
  waiter_.know({std::shared_ptr<std::byte>(control_, world_.parts()), SharedWorld::part_bytes(world_size)});
}

// A process forked off a rank inherits the object, but is not the rank.
SharedCommunicator::~SharedCommunicator() {
  if (getpid() != creator_) return;
  std::atomic_ref(world_.state(rank()).left).store(1, std::memory_order_release);
  world_.doorbell().ring();
}

void SharedCommunicator::abort(std::string_view reason) noexcept {
  try {
    waiter_.fail(-1, "rank " + std::to_string(rank()) + " aborted: " + std::string(reason));
  } catch (...) {  // no memory for the sentence
    waiter_.fail(-1, reason);
  }
}

void SharedCommunicator::post(Signal& signal, std::uint32_t value) {
  std::atomic_ref(signal).store(value, std::memory_order_release);
  world_.doorbell().ring();
}

void SharedCommunicator::wait_until(const std::function<bool()>& ready, std::string_view what) {
  waiter_.wait(ready, [&] { return std::string(what); });
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

SharedCommunicator::Group SharedCommunicator::group_of_all() const {
  Group group{.ranks = {}, .lanes = {}, .self = static_cast<std::size_t>(rank()),
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
  return {.ranks = {low, high}, .lanes = {&world_.lane(low, high), &world_.lane(high, low)},
          .self = rank() == low ? 0u : 1u, .buffer_bytes = SharedWorld::pair_buffer_bytes};
}

}  // namespace aliquot
