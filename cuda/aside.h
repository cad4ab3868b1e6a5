/// \file
/// A call that may never return.
#pragma once

#include <chrono>
#include <functional>
#include <future>
#include <thread>
#include <utility>

#include "aliquot/streams.h"

namespace aliquot::cuda {

/// Makes a call on a thread of its own, where `device` is current. The destructor leaves the thread to itself if the
/// call has not returned: what the call uses must be its own.
template <typename Result>
class Aside {
 public:
  Aside(Device device, std::function<Result()> call) {
    std::packaged_task<Result()> task([device, call = std::move(call)] {
      const DeviceGuard guard(device);
      return call();
    });
    result_ = task.get_future();
    thread_ = std::thread(std::move(task));
  }
  Aside(const Aside&) = delete;
  Aside& operator=(const Aside&) = delete;
  ~Aside() {
    if (done_within(std::chrono::milliseconds(0))) {
      thread_.join();
    } else {
      thread_.detach();
    }
  }

  bool done_within(std::chrono::milliseconds time) const {
    return !result_.valid() || result_.wait_for(time) == std::future_status::ready;
  }
  /// Waits for it, and throws what it threw. Once.
  Result result() { return result_.get(); }

 private:
  std::future<Result> result_;
  std::thread thread_;
};

}  // namespace aliquot::cuda
