#include "aliquot/communicator.h"

#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "aliquot/error.h"
#include "aliquot/memory_resource.h"
#include "observation.h"
#include "rank.h"

namespace aliquot {
namespace {

thread_local std::vector<const Signal*>* unreached = nullptr;

[[noreturn]] void refuse(const Communicator& communicator, const char* call) {
  throw InvalidArgument(std::string(call) + ": the transport '" + std::string(communicator.name()) +
                        "' is two-sided; one-sided calls need one where one_sided() is true");
}

}  // namespace

Communicator::Communicator(int rank, int world_size, std::chrono::milliseconds timeout, RankNames names)
    : rank_(rank), world_size_(world_size), timeout_(timeout), names_(names) {
  require_rank(rank, world_size);
}

void Communicator::require_intact() {}

std::uint64_t Communicator::launch(std::function<void()> work) {
  work();
  return 0;
}

void Communicator::await(std::uint64_t) {}

void settle(Communicator& communicator) noexcept {
  try {
    communicator.await(Communicator::every_launch);
  } catch (...) {
    return;  // it is over all the same
  }
}

std::unique_ptr<MemoryResource> Communicator::registrable_memory() { return nullptr; }

const std::byte* Communicator::peer(int, const std::byte*) const { return nullptr; }

void Communicator::meet(const Tag&, int, Stream) {
  throw InvalidArgument("meet: the ranks of the transport '" + std::string(name()) +
                        "' don't meet on a device; those of the transport peer do");
}

PeerMemory Communicator::share(std::size_t) { refuse(*this, "share"); }

void Communicator::post(Signal&, std::uint32_t) { refuse(*this, "post"); }

void Communicator::wait_until(const std::function<bool()>&, std::string_view) { refuse(*this, "wait_until"); }

bool Communicator::waiting(int) const { refuse(*this, "waiting"); }

std::shared_ptr<void> Communicator::add_chore(std::function<void()> chore) {
  const auto place = chores_.insert(chores_.end(), std::move(chore));
  return {&*place, [this, place](void*) { chores_.erase(place); }};
}

void Communicator::do_chores() const {
  for (const std::function<void()>& chore : chores_) chore();
}

bool reached(const Signal& signal, std::uint32_t value) noexcept {
  const std::uint32_t posted = std::atomic_ref(const_cast<Signal&>(signal)).load(std::memory_order_acquire);
  const bool yes = static_cast<std::int32_t>(posted - value) >= 0;
  if (!yes && unreached != nullptr) unreached->push_back(&signal);
  return yes;
}

Observation observe(const std::function<bool()>& ready) {
  struct Recording {
    explicit Recording(std::vector<const Signal*>* list) { unreached = list; }
    ~Recording() { unreached = nullptr; }
  };
  Observation seen;
  const Recording recording(&seen.unreached);
  seen.ready = ready();
  return seen;
}

}  // namespace aliquot
