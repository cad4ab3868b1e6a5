#include "cuda/nccl_link.h"

#include <memory>
#include <thread>
#include <utility>

#include "aliquot/error.h"
#include "aliquot/streams.h"
#include "aliquot/watchdog.h"

namespace aliquot::nccl {
namespace {

using Clock = std::chrono::steady_clock;
using cuda::Aside;

// A call that holds the lock for longer than this waits for the device, and only an abort gets it on.
constexpr std::chrono::seconds stuck_after(1);
constexpr std::chrono::seconds farewell(5);
constexpr std::chrono::milliseconds between_looks(10);

Config blocking(Config config) {
  config.blocking = 1;
  return config;
}

void pause() { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }

bool refused(Result result) { return result != Result::success && result != Result::in_progress; }

}  // namespace

Link::Link(Device device, int rank, int world_size, const UniqueId& id, Config config, Patience patience)
    : api_(api()), device_(device), patience_(std::move(patience)) {
  become("connect the ranks", [&api = api_, rank, world_size, id, config](Comm* made) {
    Config wanted = blocking(config);
    return api.init_rank(made, world_size, id, rank, &wanted);
  });
}

Link::Link(Device device, int rank, Comm parent, Config config, Patience patience)
    : api_(api()), device_(device), patience_(std::move(patience)) {
  become("split the communicator", [&api = api_, rank, parent, config](Comm* made) {
    Config wanted = blocking(config);
    Result result = api.split(parent, 0, rank, made, &wanted);
    for (; result == Result::in_progress; pause()) {  // of a parent that does not block
      if (const Result asked = api.async_error(parent, &result); refused(asked)) return asked;
    }
    return result;
  });
}

Link::~Link() {
  finish();
  await_abort();
}

// NCCL keeps whoever makes a communicator waiting for all ranks, with no way out.
void Link::become(const char* what, const std::function<Result(Comm*)>& make) {
  const auto made = std::make_shared<Comm>();
  Aside<Result> making(device_, [make, made] { return make(made.get()); });
  for (const auto start = Clock::now(); !making.done_within(between_looks);) {
    patience_.require_hope();
    if (Clock::now() - start > patience_.timeout) {
      throw CommunicatorError(std::string("NCCL could not ") + what + " within " +
                              std::to_string(patience_.timeout.count()) +
                              " ms (the communicator's timeout): not every rank takes part");
    }
  }
  if (const Result result = making.result(); result != Result::success) refuse(what, result);
  comm_ = *made;
}

void Link::call(const char* what, const std::function<Result(Comm)>& make) {
  const std::lock_guard lock(mutex_);
  const Comm comm = comm_;
  if (comm == nullptr) {
    throw CommunicatorError(std::string("NCCL could not ") + what + ": its communicator was aborted");
  }
  if (const Result result = make(comm); result != Result::success) refuse(what, result);
}

Result Link::state_of(Comm comm) const {
  Result state = Result::success;
  const Result asked = api_.async_error(comm, &state);
  return asked == Result::success ? state : asked;
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
    aborting_.emplace(device_, [comm, &api = api_] { return api.abort(comm); });
  } catch (const std::exception&) {  // there was no thread to be had
    api_.abort(comm);
  }
}

// An abort that hangs would hang whatever comes after it too.
void Link::await_abort() noexcept {
  if (!aborting_ || aborting_->done_within(std::chrono::milliseconds(0))) return;
  const Watchdog watchdog(farewell, "the abort of a communicator of NCCL");
  aborting_->done_within(std::chrono::hours(1));
}

// NCCL waits here for the ranks of this host. If they don't come, it is left waiting: an abort beside it would free
// what it uses.
void Link::finish() noexcept try {
  const Comm comm = comm_.exchange(nullptr);
  if (comm == nullptr) return;
  Aside<Result> finishing(device_, [comm, &api = api_] {
    const Result finalized = api.finalize(comm);
    return finalized == Result::success ? api.destroy(comm) : finalized;
  });
  finishing.done_within(farewell);
} catch (const std::exception&) {  // there was no thread to be had
}

void Link::refuse(const char* what, Result result) const {
  const char* detail = api_.last_error(nullptr);
  throw CommunicatorError(std::string("NCCL could not ") + what + ": " + api_.error_string(result) +
                          (detail != nullptr && *detail != '\0' ? std::string(" (") + detail + ")" : ""));
}

}  // namespace aliquot::nccl
