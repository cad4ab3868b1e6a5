#include "cuda/nccl_communicator.h"

#include <chrono>
#include <string>
#include <thread>
#include <utility>

#include "cuda/nccl_connect.h"
#include "launcher.h"
#include "waiter.h"

namespace aliquot {

using namespace std::chrono_literals;

NcclCommunicator::NcclCommunicator(std::unique_ptr<Communicator> control, Device device, const NcclOrigin& origin,
                                   ControlChannel* channel)
    : WatchedCommunicator(std::move(control), device, channel), api_(nccl::api()),
      gathers_{nccl::connect(host(), device, origin, nccl::gather_config(), patience()), cuda::Progress(device),
               cuda::Backlog(device)},
      others_{nccl::connect(host(), device, {{}, origin.communicator}, {}, patience()), cuda::Progress(device),
              cuda::Backlog(device)} {
  begin_watch();
}

// A rank that has left before is at the end of its process, when the runtime may be gone; a fork has none at all.
NcclCommunicator::~NcclCommunicator() {
  const bool process_ends = has_left();
  NcclCommunicator::leave();
  if (!process_ends && !in_fork()) return;
  gathers_.link.abandon();
  others_.link.abandon();
}

void NcclCommunicator::call(Queue& queue, const char* what, const Call& call) {
  if (!Launcher::here()) return await(launch([&] { NcclCommunicator::call(queue, what, call); }));
  end_if_fails([&] { queue.link.call(what, call); });
}

void NcclCommunicator::enqueue(Queue& queue, const char* what, Stream stream, const Call& call) {
  if (!Launcher::here()) return await(launch([&] { enqueue(queue, what, stream, call); }));
  await_room(queue);
  NcclCommunicator::call(queue, what, call);
  queue.progress.mark(stream);
  if (!cuda::capturing(stream)) queue.backlog.mark(stream);
}

void NcclCommunicator::await_room(Queue& queue) {
  while (!queue.backlog.has_room()) {
    raise_failure();
    std::this_thread::sleep_for(20us);
  }
}

nccl::Patience NcclCommunicator::patience() {
  return {timeout(), [this] {
            require_intact();
            if (interrupt_check() && !Launcher::here()) interrupt_check()();
          }};
}

void NcclCommunicator::look_at_device() {
  gathers_.link.require_health();
  others_.link.require_health();
  require_progress(gathers_.progress, "collectives of gathers", timeout());
  require_progress(others_.progress, "collectives of reductions", timeout());
}

void NcclCommunicator::abort_device() noexcept {
  gathers_.link.abort();
  others_.link.abort();
}

void NcclCommunicator::await_abort() noexcept {
  gathers_.link.await_abort();
  others_.link.await_abort();
}

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> control, Device device,
                                                     const NcclOrigin& origin, ControlChannel* channel) {
  Watch::require_sight(*control, channel);
  nccl::require_own_device(*control, device);
  return std::make_unique<NcclCommunicator>(std::move(control), device, origin, channel);
}

}  // namespace aliquot
