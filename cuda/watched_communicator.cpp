#include "cuda/watched_communicator.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include <cuda_runtime_api.h>

namespace aliquot {
namespace {

using namespace std::chrono_literals;

constexpr auto between_looks = 50ms;
// A rank that leaves finishes what its peers may still need from it, but not at any price.
constexpr auto longest_farewell = 30s;

// What a thread of ours asks must not spoil a capture into a graph that another thread is making.
void prepare_thread(Device device) {
  cudaSetDevice(device.index);
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
}

}  // namespace

WatchedCommunicator::WatchedCommunicator(std::unique_ptr<Communicator> control, Device device, ControlChannel* channel)
    : Communicator(control->rank(), control->world_size(), control->timeout(), control->names()),
      control_(std::move(control)), channel_(channel), device_(device), creator_(getpid()), watch_(*control_, channel),
      host_(*control_, watch_, *this) {}

// To destroy a condition variable waits for who waits on it; a fork has inherited the wait, but not the thread.
WatchedCommunicator::~WatchedCommunicator() {
  if (!in_fork()) return;
  if (watcher_.joinable()) watcher_.detach();
  static_cast<void>(alarm_.release());
}

bool WatchedCommunicator::in_fork() const noexcept { return getpid() != creator_; }

void WatchedCommunicator::begin_watch() {
  launcher_ = std::make_unique<Launcher>([device = device_] { prepare_thread(device); });
  watcher_ = std::jthread([this](const std::stop_token& stop) { watch(stop); });
}

std::uint64_t WatchedCommunicator::launch(std::function<void()> work) {
  if (can_launch()) return launcher_->give([this, work = std::move(work)] { end_if_fails(work); });
  failure_.raise();
  throw InvalidArgument("launch: " + named() + " has left, or this is a fork of it");
}

// In any case the work is over when this returns or throws: it may refer to the caller's stack.
void WatchedCommunicator::await(std::uint64_t launch) try {
  if (can_launch()) launcher_->await(launch);
} catch (...) {
  if (launcher_->failed()) failure_.raise();
  if (!launcher_->failed()) end(interrupted());
  launcher_->drain();
  throw;
}

std::string WatchedCommunicator::interrupted() const {
  return named() + " was interrupted while it waited for its device";
}

void WatchedCommunicator::say(std::string_view collective, const Tag& tag, std::uint64_t size, int root) {
  await(every_launch);
  watch_.say(collective, tag, size, root);
}

void WatchedCommunicator::require_progress(cuda::Progress& progress, std::string_view what,
                                           cuda::Progress::Clock::duration longest) const {
  if (progress.age() <= longest) return;
  throw CommunicatorError(named() + ": its device has not got through the " + std::string(what) + " for " +
                          std::to_string(timeout().count()) +
                          " ms (the communicator's timeout), though no rank is behind. If the work on the stream " +
                          "takes that long, give a longer timeout");
}

// By way of the tags, which partners on the host compare.
void WatchedCommunicator::agree(const Tag& tag, std::size_t bytes, int from, int to) {
  await(every_launch);
  const std::string unit = std::string(tag.unit) + ", " + std::to_string(bytes) + " bytes";
  if (from == rank()) {
    host_.send({tag.operation, unit}, {}, to, {});
  } else {
    host_.receive({tag.operation, unit}, {}, from, {});
  }
}

void WatchedCommunicator::require_intact() {
  failure_.raise();
  if (fails([this] { control_->require_intact(); })) failure_.raise();
}

void WatchedCommunicator::abort(std::string_view reason) noexcept {
  tell(reason);
  fails([this] { control_->require_intact(); });
}

// The channel joins more ranks: those of other hosts, who may wait for this one by way of others.
void WatchedCommunicator::tell(std::string_view reason) noexcept {
  control_->abort(reason);
  if (channel_ != nullptr) channel_->announce(reason);
}

void WatchedCommunicator::watch(const std::stop_token& stop) noexcept {
  prepare_thread(device_);
  const auto look = [this] {
    watch_.look();
    try {
      look_at_device();
    } catch (const Error&) {
      watch_.look_for_reason();
      throw;
    }
  };
  std::unique_lock lock(alarm_->mutex);
  while (!stop.stop_requested()) {
    if (fails(look)) return end(failure_.text.data());
    alarm_->wake.wait_for(lock, stop, between_looks, [] { return false; });
  }
}

bool WatchedCommunicator::fails(const std::function<void()>& check) noexcept {
  try {
    check();
    return false;
  } catch (const PeerLost& error) {
    failure_.record(error.rank(), error.what());
  } catch (const std::exception& error) {
    failure_.record(-1, error.what());
  }
  while (!failure_.happened()) std::this_thread::yield();  // another thread was first, and is about to say so
  return true;
}

// Told to the peers before the device's waits end, so that what they meet first is the reason.
void WatchedCommunicator::end(std::string_view text) noexcept {
  failure_.record(-1, text);
  tell(text);
  abort_device();
}

void WatchedCommunicator::leave() noexcept {
  if (in_fork() || left_.exchange(true)) return;
  if (!drain()) tell("it left before its collectives were done");
  launcher_.reset();  // while there is still someone who gets it out if it is stuck
  watch_.leave();
  watcher_.request_stop();
  if (watcher_.joinable()) watcher_.join();
  if (fails([this] { require_intact(); })) {
    end(failure_.text.data());  // what a peer has aborted can't end in good order any more
    await_abort();
  }
  control_->leave();
}

bool WatchedCommunicator::drain() noexcept {
  const auto deadline =
      std::chrono::steady_clock::now() + std::min<std::chrono::milliseconds>(timeout(), longest_farewell);
  try {
    await(every_launch);
    while (!failure_.happened() && !idle()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(1ms);
    }
  } catch (const std::exception&) {  // the device has met an error: nothing more is to come of it
  }
  return true;
}

}  // namespace aliquot
