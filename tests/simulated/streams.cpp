// Fills the seam of streams.h. What one stream does is ordered with another's by events alone, as on a device: so a
// thread sanitizer sees every hand-over that is missing.
#include "tests/simulated/streams.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "aliquot/streams.h"

namespace aliquot {
namespace simulated {
namespace {

using Clock = std::chrono::steady_clock;

/// Where a stream gets to, once.
class Point {
 public:
  void pass() {
    const std::lock_guard lock(mutex_);
    when_ = Clock::now();
    passed_ = true;
    changed_.notify_all();
  }
  Clock::time_point await() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return passed_; });
    return when_;
  }
  bool passed() {
    const std::lock_guard lock(mutex_);
    return passed_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  Clock::time_point when_;
  bool passed_ = false;
};

/// The streams of all devices that are there.
class Streams {
 public:
  void add(Device device, const std::shared_ptr<Queue>& queue) {
    const std::lock_guard lock(mutex_);
    std::erase_if(all_, [](const auto& one) { return one.second.expired(); });
    all_.emplace_back(device, queue);
  }
  std::vector<std::shared_ptr<Queue>> of(Device device) {
    const std::lock_guard lock(mutex_);
    std::vector<std::shared_ptr<Queue>> queues;
    for (const auto& [where, weak] : all_) {
      if (auto queue = weak.lock(); queue && where == device) queues.push_back(std::move(queue));
    }
    return queues;
  }

 private:
  std::mutex mutex_;
  std::vector<std::pair<Device, std::weak_ptr<Queue>>> all_;
};

Streams& streams() {
  static Streams all;
  return all;
}

/// What an event was recorded at last; null: never.
using Recorded = std::shared_ptr<Point>;

std::atomic<std::size_t>& count_of_taken() {
  static std::atomic<std::size_t> count = 0;
  return count;
}

Recorded& recorded(void* handle) { return *static_cast<Recorded*>(handle); }

void* new_event(Device device) { return device.type == Device::Type::cpu ? nullptr : new Recorded; }

void record(void* handle, Stream stream) {
  recorded(handle) = std::make_shared<Point>();
  give(stream, [point = recorded(handle)] { point->pass(); });
}

}  // namespace

std::size_t taken() noexcept { return count_of_taken(); }
void note_taken() noexcept { ++count_of_taken(); }

void Queue::give(Work work) {
  const std::lock_guard lock(mutex_);
  works_.push_back(std::move(work));
  changed_.notify_all();
}

void Queue::synchronize() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return works_.empty() && !busy_; });
}

void Queue::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

void Queue::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return closed_ || !works_.empty(); });
    if (works_.empty()) return;
    const Work work = std::move(works_.front());
    works_.pop_front();
    busy_ = true;
    lock.unlock();
    work();
    lock.lock();
    busy_ = false;
    changed_.notify_all();
  }
}

void give(Stream stream, Work work) {
  if (stream.handle == nullptr) return work();
  (*static_cast<std::shared_ptr<Queue>*>(stream.handle))->give(std::move(work));
}

void synchronize(Device device) {
  for (const std::shared_ptr<Queue>& queue : streams().of(device)) queue->synchronize();
}

}  // namespace simulated

using simulated::Recorded;
using simulated::recorded;

bool built_with_cuda() noexcept { return true; }
int cuda_device_count() noexcept { return 4; }

DeviceGuard::DeviceGuard(Device) {}
DeviceGuard::~DeviceGuard() {}

OwnedStream::OwnedStream(Device device, Priority) : device_(device) {
  if (device.type == Device::Type::cpu) return;
  const auto queue = std::make_shared<simulated::Queue>();
  handle_ = new std::shared_ptr<simulated::Queue>(queue);
  simulated::streams().add(device, queue);
  simulated::note_taken();
  std::thread([queue] { queue->run(); }).detach();
}
OwnedStream::~OwnedStream() {
  const auto* const queue = static_cast<std::shared_ptr<simulated::Queue>*>(handle_);
  if (queue != nullptr) (*queue)->close();
  delete queue;
}

Event::Event(Device device) : handle_(simulated::new_event(device)) {}
Event::~Event() { delete static_cast<Recorded*>(handle_); }
void Event::record(Stream stream) {
  if (handle_ != nullptr) simulated::record(handle_, stream);
}
void Event::block(Stream stream) const {
  if (handle_ == nullptr || recorded(handle_) == nullptr) return;
  simulated::give(stream, [point = recorded(handle_)] { point->await(); });
}
bool Event::done() const { return handle_ == nullptr || recorded(handle_) == nullptr || recorded(handle_)->passed(); }
void Event::synchronize() const {
  if (handle_ != nullptr && recorded(handle_) != nullptr) recorded(handle_)->await();
}

TimedEvent::TimedEvent(Device device) : handle_(simulated::new_event(device)) {}
TimedEvent::~TimedEvent() { delete static_cast<Recorded*>(handle_); }
void TimedEvent::record(Stream stream) {
  passed_ = simulated::Clock::now();
  if (handle_ != nullptr) simulated::record(handle_, stream);
}
double TimedEvent::seconds_since(const TimedEvent& earlier) const {
  const auto when = [](const TimedEvent& event) {
    return event.handle_ == nullptr ? event.passed_ : recorded(event.handle_)->await();
  };
  return std::chrono::duration<double>(when(*this) - when(earlier)).count();
}

void copy_async(void* to, const void* from, std::size_t bytes, Stream stream) {
  if (bytes == 0) return;
  if (simulated::is_planned(from)) {
    simulated::give(stream, [=] { std::memmove(to, from, bytes); });
  } else {
    const auto* const begin = static_cast<const std::byte*>(from);
    simulated::give(stream,
                    [to, read = std::vector(begin, begin + bytes)] { std::memcpy(to, read.data(), read.size()); });
  }
  if (!simulated::is_planned(to)) synchronize(stream);
}

void fill_async(void* data, std::uint8_t byte, std::size_t bytes, Stream stream) {
  simulated::give(stream, [=] {
    if (bytes != 0) std::memset(data, byte, bytes);
  });
}

void synchronize(Stream stream) {
  if (stream.handle != nullptr) (*static_cast<std::shared_ptr<simulated::Queue>*>(stream.handle))->synchronize();
}

}  // namespace aliquot
