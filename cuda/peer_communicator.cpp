#include "cuda/peer_communicator.h"

#include <chrono>
#include <string>
#include <thread>

#include "aliquot/error.h"
#include "aliquot/streams.h"
#include "aliquot/transports.h"
#include "cuda/peer_access.h"
#include "cuda/registrable_memory.h"

namespace aliquot {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

// How long the device may take to find that its waits were aborted.
constexpr auto farewell = 5s;
// Whoever can name the rank that is late comes first.
constexpr auto grace = 1s;

}  // namespace

PeerCommunicator::PeerCommunicator(std::unique_ptr<Communicator> control, Device device, ControlChannel* channel)
    : WatchedCommunicator(std::move(control), device, channel) {
  const int channels = first_of_callers + meeting_channels;
  for (int channel = 0; channel < channels; ++channel) queues_.emplace_back(channel, device);
  world_ = std::make_unique<cuda::PeerWorld>(host(), device, channels);
  host().barrier(
      {"connect", "peers"});  // no stream waits for a rank that still allocates: that may wait for the device
  begin_watch();
}

// A rank that has left before is at the end of its process, when the runtime may be gone; a fork has none at all.
PeerCommunicator::~PeerCommunicator() {
  const bool process_ends = has_left();
  PeerCommunicator::leave();
  if (process_ends || in_fork() || !let_go()) static_cast<void>(world_.release());
}

// A graph may still wait for peers that are gone.
bool PeerCommunicator::let_go() noexcept {
  abort_device();
  await_abort();
  try {
    return idle();
  } catch (const DeviceError&) {  // the device is of no more use, and waits for nothing
    return true;
  }
}

std::unique_ptr<MemoryResource> PeerCommunicator::registrable_memory() { return cuda::registrable_memory(device()); }

std::shared_ptr<void> PeerCommunicator::register_memory(std::span<std::byte> memory) {
  raise_failure();
  return world_->regions().add(host(), device(), memory);
}

const std::byte* PeerCommunicator::peer(int rank, const std::byte* own) const {
  return world_->regions().find(rank, own);
}

void PeerCommunicator::meet(const Tag& tag, int channel, Stream stream) {
  if (channel < 0 || channel >= meeting_channels) {
    throw InvalidArgument("meet: there is no channel " + std::to_string(channel) + "; channels count from 0 to " +
                          std::to_string(meeting_channels - 1));
  }
  say("meet", tag, static_cast<std::uint64_t>(channel));
  Queue& queue = queues_[first_of_callers + static_cast<std::size_t>(channel)];
  end_if_fails([&] {
    const DeviceGuard guard(device());
    queue.progress.precede(stream);
    world_->meetings().meet(queue.channel, everyone(), stream);
    queue.progress.mark(stream);
  });
}

void PeerCommunicator::mark(Stream stream) {
  const DeviceGuard guard(device());
  queues_[gathers].progress.mark(stream);
}

void PeerCommunicator::enqueue(int number, Stream stream, const std::function<void()>& work) {
  Queue& queue = queues_[static_cast<std::size_t>(number)];
  end_if_fails([&] {
    const DeviceGuard guard(device());
    queue.progress.precede(stream);
    work();
    queue.progress.mark(stream);
  });
}

void PeerCommunicator::look_at_device() {
  world_->meetings().require_pace(timeout(), what_is_done_on);
  for (Queue& queue : queues_) require_progress(queue.progress, what_is_done_on(queue.channel), timeout() + grace);
}

std::string PeerCommunicator::what_is_done_on(int channel) {
  switch (channel) {
    case gathers: return "collectives of gathers";
    case others: return "collectives of reductions";
    case pairs: return "sends and receives";
    default: return "meetings on channel " + std::to_string(channel - first_of_callers);
  }
}

bool PeerCommunicator::idle() {
  for (const Queue& queue : queues_) {
    if (!queue.progress.done()) return false;
  }
  return true;
}

void PeerCommunicator::await_abort() noexcept {
  try {
    for (const auto deadline = Clock::now() + farewell; !idle() && Clock::now() < deadline;) {
      std::this_thread::sleep_for(1ms);
    }
  } catch (const std::exception&) {  // the device is of no more use
  }
}

std::unique_ptr<Communicator> make_peer_communicator(std::unique_ptr<Communicator> control, Device device,
                                                     ControlChannel* channel) {
  Watch::require_sight(*control, channel);
  cuda::require_peer_access(*control, device);
  return std::make_unique<PeerCommunicator>(std::move(control), device, channel);
}

}  // namespace aliquot
