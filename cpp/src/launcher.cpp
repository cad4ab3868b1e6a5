#include "launcher.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "waiter.h"

namespace aliquot {
namespace {

using Clock = std::chrono::steady_clock;

// Longer than it usually takes from one unit of a model to the next.
constexpr std::chrono::milliseconds awake(2);

thread_local bool launching = false;

}  // namespace

bool Launcher::here() noexcept { return launching; }

Launcher::Launcher(Work start) : creator_(getpid()), works_{std::move(start)}, thread_([this] { run(); }) {}

// A fork of the process has the object, but not the thread. An empty work is the last.
Launcher::~Launcher() {
  if (getpid() == creator_) {
    give({});
    thread_.join();
  } else {
    thread_.detach();
  }
}

std::uint64_t Launcher::give(Work work) {
  {
    const std::lock_guard lock(mutex_);
    works_.push_back(std::move(work));
  }
  const std::uint64_t number = ++given_;
  given_.notify_one();
  return number;
}

void Launcher::run() {
  launching = true;
  while (const Work work = next()) {
    attempt(work);
    ++done_;
  }
}

// To be woken costs the giver more than all else that it does here, so the thread stays awake for a while.
void Launcher::await_next() const {
  const std::uint64_t done = done_;
  for (const auto end = Clock::now() + awake; given_ == done && Clock::now() < end;) std::this_thread::yield();
  given_.wait(done);
}

Launcher::Work Launcher::next() {
  await_next();
  const std::lock_guard lock(mutex_);
  Work work = std::move(works_.front());
  works_.pop_front();
  return work;
}

void Launcher::attempt(const Work& work) try {
  if (!failed_) work();
} catch (...) {
  failure_ = std::current_exception();
  failed_ = true;
}

void Launcher::await(std::uint64_t number) {
  if (here()) return;
  wait_for(std::min(number, given_.load()));
  if (failed_) std::rethrow_exception(failure_);
}

void Launcher::drain() const noexcept {
  while (!here() && done_ < given_) std::this_thread::sleep_for(std::chrono::microseconds(50));
}

// Most work is done at once; work that waits for peers ends by the patience of its transport.
void Launcher::wait_for(std::uint64_t number) const {
  const auto start = Clock::now();
  for (auto next_check = start + interrupt_interval; done_ < number;) {
    if (Clock::now() - start < std::chrono::milliseconds(1)) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    if (Clock::now() < next_check) continue;
    if (interrupt_check()) interrupt_check()();
    next_check = Clock::now() + interrupt_interval;
  }
}

}  // namespace aliquot
