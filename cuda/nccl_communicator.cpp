#include "cuda/nccl_communicator.h"

#include <unistd.h>

#include <algorithm>
#include <string>

#include "aliquot/error.h"
#include "cuda/nccl_connect.h"
#include "waiter.h"

namespace aliquot {
namespace {

using namespace std::chrono_literals;

constexpr auto between_looks = 50ms;
// A rank that leaves finishes what its peers may still need from it, but not at any price.
constexpr auto longest_farewell = 30s;

}  // namespace

NcclCommunicator::NcclCommunicator(std::unique_ptr<Communicator> control, Device device, const NcclOrigin& origin)
    : Communicator(control->rank(), control->world_size(), control->timeout()), control_(std::move(control)),
      device_(device), api_(nccl::api()), creator_(getpid()), watch_(*control_), host_(*control_, watch_),
      gathers_{nccl::connect(*control_, device, origin, nccl::gather_config(), patience()), cuda::Progress(device)},
      others_{nccl::connect(*control_, device, {{}, origin.communicator}, {}, patience()), cuda::Progress(device)},
      watcher_([this](const std::stop_token& stop) { watch(stop); }) {}

NcclCommunicator::~NcclCommunicator() {
  const bool process_ends = left_;
  if (getpid() != creator_) watcher_.detach();  // a fork of the rank has the object, but not the thread
  NcclCommunicator::leave();
  if (!process_ends && getpid() == creator_) return;
  gathers_.link.abandon();
  others_.link.abandon();
}

void NcclCommunicator::call(Queue& queue, const char* what, const Call& call) {
  failure_.raise();
  try {
    queue.link.call(what, call);
  } catch (const Error& error) {
    failure_.raise();  // what NCCL says of an abort is not its reason
    end("rank " + std::to_string(rank()) + ": " + error.what());
    throw;
  } catch (...) {
    end("rank " + std::to_string(rank()) + " was interrupted while NCCL was to " + what);
    throw;
  }
}

void NcclCommunicator::enqueue(Queue& queue, const char* what, Stream stream, const Call& call) {
  NcclCommunicator::call(queue, what, call);
  queue.progress.mark(stream);
}

void NcclCommunicator::require_intact() {
  failure_.raise();
  if (fails([this] { control_->require_intact(); })) failure_.raise();
}

void NcclCommunicator::abort(std::string_view reason) noexcept {
  control_->abort(reason);
  fails([this] { control_->require_intact(); });
}

nccl::Patience NcclCommunicator::patience() {
  return {timeout(), [this] {
            require_intact();
            if (interrupt_check()) interrupt_check()();
          }};
}

void NcclCommunicator::watch(const std::stop_token& stop) noexcept {
  cudaSetDevice(device_.index);
  // Questions about events must not spoil a capture into a graph that another thread is making.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  std::unique_lock lock(sleep_mutex_);
  while (!stop.stop_requested()) {
    if (fails([this] { look(); })) return end(failure_.text.data());
    wake_.wait_for(lock, stop, between_looks, [] { return false; });
  }
}

bool NcclCommunicator::fails(const std::function<void()>& check) noexcept {
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

void NcclCommunicator::look() {
  watch_.look();
  for (Queue* queue : {&gathers_, &others_}) {
    queue->link.require_health();
    if (queue->progress.age() <= timeout()) continue;
    throw CommunicatorError("rank " + std::to_string(rank()) + ": its device has not got through the collectives of " +
                            (queue == &gathers_ ? "gathers" : "reductions") + " for " +
                            std::to_string(timeout().count()) +
                            " ms (the communicator's timeout), though no rank is behind. If the work on the stream " +
                            "takes that long, give a longer timeout");
  }
}

// Told to the peers before the links are aborted, so that what they meet first is the reason.
void NcclCommunicator::end(std::string_view text) noexcept {
  failure_.record(-1, text);
  control_->abort(text);
  gathers_.link.abort();
  others_.link.abort();
}

void NcclCommunicator::leave() noexcept {
  if (getpid() != creator_ || left_.exchange(true)) return;
  if (!drain()) control_->abort("it left before its collectives were done");
  watch_.leave();
  watcher_.request_stop();
  if (watcher_.joinable()) watcher_.join();
  // Links that a peer has aborted can't end in good order any more.
  if (fails([this] { require_intact(); })) {
    end(failure_.text.data());
    gathers_.link.await_abort();
    others_.link.await_abort();
  }
  control_->leave();
}

bool NcclCommunicator::drain() noexcept {
  const auto deadline =
      std::chrono::steady_clock::now() + std::min<std::chrono::milliseconds>(timeout(), longest_farewell);
  try {
    while (!failure_.happened() && !(gathers_.progress.done() && others_.progress.done())) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(1ms);
    }
  } catch (const std::exception&) {  // the device has met an error: nothing more is to come of it
  }
  return true;
}

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> control, Device device,
                                                     const NcclOrigin& origin) {
  if (!control->one_sided()) {
    throw InvalidArgument(
        "the transport nccl needs a one-sided communicator of the same ranks beside it, such as "
        "shared_memory; ranks of several hosts can use the transport process_group");
  }
  nccl::require_own_device(*control, device);
  return std::make_unique<NcclCommunicator>(std::move(control), device, origin);
}

}  // namespace aliquot
