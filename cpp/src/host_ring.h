/// \file
/// Pinned host memory for small messages to and from a device, several of them under way.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "aliquot/memory_resource.h"
#include "aliquot/streams.h"

namespace aliquot {

/// A ring of messages of one size. The host waits only where it is a whole round ahead of the device.
class HostRing {
 public:
  HostRing() = default;
  HostRing(Device device, std::size_t message_bytes, std::size_t count);
  HostRing(HostRing&&) = default;
  /// The messages that were here must go before the memory that they are in.
  HostRing& operator=(HostRing&& other) noexcept {
    messages_ = std::move(other.messages_);
    pinned_ = std::move(other.pinned_);
    last_ = other.last_;
    count_ = other.count_;
    return *this;
  }

  /// The next message's memory, once nothing uses it any more.
  std::byte* next();
  /// The device is done with that message when it has passed this point of `stream`.
  void record(Stream stream) { messages_[last_].passed.record(stream); }
  /// The host waits until the device is done with all messages.
  void synchronize() const {
    for (const Message& message : messages_) message.passed.synchronize();
  }
  /// The latest message that the device is done with; null if there is none yet.
  const std::byte* latest() const;

 private:
  struct Message {
    Buffer memory;
    Event passed;
    std::size_t number = 0;
  };
  std::unique_ptr<MemoryResource> pinned_;
  std::vector<Message> messages_;
  std::size_t last_ = 0;
  std::size_t count_ = 0;
};

}  // namespace aliquot
