#include "cuda/nccl_link.h"

#include <thread>
#include <utility>

#include "aliquot/error.h"
#include "aliquot/streams.h"

namespace aliquot::nccl {
namespace {

using Clock = std::chrono::steady_clock;

// A call that holds the lock for longer than this waits for the device, and only an abort gets it on.
constexpr std::chrono::seconds stuck_after(1);
constexpr std::chrono::seconds farewell(5);
constexpr std::chrono::milliseconds between_looks(10);

Config non_blocking(Config config) {
  config.blocking = 0;
  return config;
}

// NCCL writes here when it has made a communicator, which may be after whoever wanted it has lost patience: never
// freed.
Comm& place_for_comm() { return *new Comm(nullptr); }

// Most waits are over at once; connecting takes seconds, and leaves the core to others.
void pause_since(Clock::time_point start) {
  if (Clock::now() - start < std::chrono::milliseconds(1)) return std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::microseconds(100));
}

bool refused(Result result) { return result != Result::success && result != Result::in_progress; }

}  // namespace

Link::Link(Device device, int rank, int world_size, const UniqueId& id, Config config, Patience patience)
    : api_(api()), device_(device), patience_(std::move(patience)) {
  const DeviceGuard guard(device_);
  Config wanted = non_blocking(config);
  Comm& made = place_for_comm();
  const Result result = api_.init_rank(&made, world_size, id, rank, &wanted);
  if (refused(result)) refuse("connect the ranks", result);
  become(made, "connect the ranks");
}

Link::Link(Device device, int rank, Comm parent, Config config, Patience patience)
    : api_(api()), device_(device), patience_(std::move(patience)) {
  const DeviceGuard guard(device_);
  Config wanted = non_blocking(config);
  Comm& made = place_for_comm();
  const Result result = api_.split(parent, 0, rank, &made, &wanted);
  if (refused(result)) refuse("split the communicator", result);
  settle("split the communicator", [&] { return state_of(parent); });
  become(made, "split the communicator");
}

Link::~Link() {
  if (!finish()) abort();
  await_abort();
}

void Link::become(Comm comm, const char* what) {
  comm_ = comm;
  try {
    settle(what, [&] { return state(comm); });
  } catch (...) {
    abort();
    await_abort();
    throw;
  }
}

void Link::call(const char* what, const std::function<Result(Comm)>& make) {
  Comm comm = nullptr;
  {
    const std::lock_guard lock(mutex_);
    comm = comm_;
    const Result result = comm == nullptr ? Result::in_progress : make(comm);
    if (refused(result)) refuse(what, result);
  }
  // Also where the call says success: a registration does, and is then under way like any other.
  settle(what, [&] { return state(comm); });
}

void Link::settle(const char* what, const std::function<std::optional<Result>()>& ask) {
  const auto start = Clock::now();
  for (auto next_look = start;; pause_since(start)) {
    const std::optional<Result> now = ask();
    if (now == Result::success) return;
    if (now && refused(*now)) refuse(what, *now);
    if (now && Clock::now() < next_look) continue;
    patience_.require_hope();
    if (!now) throw CommunicatorError(std::string("NCCL could not ") + what + ": its communicator was aborted");
    if (Clock::now() - start > patience_.timeout) {
      throw CommunicatorError(std::string("NCCL could not ") + what + " within " +
                              std::to_string(patience_.timeout.count()) +
                              " ms (the communicator's timeout): not every rank takes part");
    }
    next_look = Clock::now() + between_looks;
  }
}

Result Link::state_of(Comm comm) const {
  Result state = Result::success;
  const Result asked = api_.async_error(comm, &state);
  return asked == Result::success ? state : asked;
}

std::optional<Result> Link::state(Comm comm) {
  const std::lock_guard lock(mutex_);
  if (comm == nullptr || comm_ != comm) return {};
  return state_of(comm);
}

void Link::require_health() {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  const Comm comm = comm_;
  if (!lock || comm == nullptr) return;
  if (const Result state = state_of(comm); refused(state)) refuse("go on", state);
}

// Once the lock was held, nobody uses the communicator any more; if it can't be had, somebody is stuck in a call, and
// this gets him out. A thread of its own, since NCCL may wait here for other work of the device, which only the abort
// of another link ends.
void Link::abort() noexcept {
  const Comm comm = comm_.exchange(nullptr);
  if (comm == nullptr) return;
  {
    const std::unique_lock lock(mutex_, stuck_after);
  }
  try {
    std::packaged_task<void()> task([comm, &api = api_, index = device_.index] {
      if (cudaSetDevice(index) == cudaSuccess) api.abort(comm);
    });
    aborted_ = task.get_future();
    std::thread(std::move(task)).detach();
  } catch (...) {  // there was no thread to be had
    api_.abort(comm);
  }
}

void Link::await_abort() noexcept {
  if (aborted_.valid()) aborted_.wait_for(farewell);
}

bool Link::finish() noexcept try {
  const Comm comm = comm_;
  if (comm == nullptr) return true;
  const DeviceGuard guard(device_);
  if (refused(api_.finalize(comm))) return false;
  for (const auto deadline = Clock::now() + farewell; state_of(comm) != Result::success;) {
    if (refused(state_of(comm)) || Clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  comm_ = nullptr;
  return !refused(api_.destroy(comm));
} catch (const Error&) {  // the device is of no more use
  return false;
}

void Link::refuse(const char* what, Result result) const {
  const char* detail = api_.last_error(nullptr);
  throw CommunicatorError(std::string("NCCL could not ") + what + ": " + api_.error_string(result) +
                          (detail != nullptr && *detail != '\0' ? std::string(" (") + detail + ")" : ""));
}

}  // namespace aliquot::nccl
