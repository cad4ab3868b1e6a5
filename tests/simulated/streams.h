/// \file
/// Streams of a device that this process plays: each is a thread, which does one thing after the other.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

#include "aliquot/device.h"

namespace aliquot::simulated {

using Work = std::function<void()>;

/// What a stream was given and has not done yet. Shared with the stream's thread, which may outlive the owner.
class Queue {
 public:
  void give(Work work);
  /// The caller waits until all is done.
  void synchronize();
  /// Does what it is given, until close() and the end of what came before.
  void run();
  void close();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Work> works_;
  bool busy_ = false;
  bool closed_ = false;
};

/// Gives `work` to `stream`. There is no stream behind the null handle: the caller does it.
void give(Stream stream, Work work);

/// The caller waits until all streams of `device` have done what they were given.
void synchronize(Device device);

/// True where an address is of the device's memory or pinned, so that streams may use it later.
bool is_planned(const void* data);

/// How many pieces of such memory, and streams, were taken since the process began.
std::size_t taken() noexcept;
void note_taken() noexcept;

}  // namespace aliquot::simulated
