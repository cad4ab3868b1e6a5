#include "host_ring.h"

namespace aliquot {

HostRing::HostRing(Device device, std::size_t message_bytes, std::size_t count)
    : pinned_(pinned_memory()), messages_(count) {
  for (Message& message : messages_) message = {Buffer(*pinned_, message_bytes), Event(device)};
}

std::byte* HostRing::next() {
  last_ = count_ % messages_.size();
  Message& message = messages_[last_];
  message.passed.synchronize();
  message.number = ++count_;
  return message.memory.data();
}

const std::byte* HostRing::latest() const {
  const Message* latest = nullptr;
  for (const Message& message : messages_) {
    if (message.number == 0 || (latest != nullptr && message.number < latest->number)) continue;
    if (message.passed.done()) latest = &message;
  }
  return latest == nullptr ? nullptr : latest->memory.data();
}

}  // namespace aliquot
