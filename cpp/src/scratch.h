/// \file
/// Memory that calls of a transport use one after the other.
#pragma once

#include <cstddef>
#include <memory>

#include "aliquot/memory_resource.h"
#include "aliquot/streams.h"

namespace aliquot {

/// As large as the largest call has needed so far. A call that comes on another stream than the one before waits there
/// until that has done its work.
class Scratch {
 public:
  explicit Scratch(Device device);
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  /// The host waits for the calls.
  ~Scratch();

  /// use(memory) gives the call's work to `stream`. Where there is more to take than before, the host waits for the
  /// calls before, and for the device.
  template <typename Use>
  void lend(std::size_t bytes, Stream stream, const Use& use) {
    std::byte* const memory = begin(bytes, stream);
    use(memory);
    used_.record(stream);
  }

 private:
  std::byte* begin(std::size_t bytes, Stream stream);

  std::unique_ptr<MemoryResource> of_device_;
  MemoryResource& memory_;
  Event used_;
  Buffer buffer_;
};

}  // namespace aliquot
