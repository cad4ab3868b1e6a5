/// \file
/// By what way bytes go between a device and the host's ordinary memory.
#pragma once

#include <cstddef>
#include <memory>

#include "aliquot/memory_resource.h"
#include "aliquot/streams.h"

namespace aliquot {

/// One thread's: a little pinned memory, and a stream that copies to or from it.
struct Staging {
  /// Enough for a device to copy at once; few enough to stay in a core's cache, so that what is done with them there,
  /// like a checksum, costs next to nothing.
  static constexpr std::size_t bytes = std::size_t{256} << 10;

  /// \param device  the calling thread's current one
  explicit Staging(Device device) : stream(device, Priority::low) {}

  std::byte* data() const noexcept { return buffer.data(); }

  std::unique_ptr<MemoryResource> memory = pinned_memory();
  Buffer buffer{*memory, bytes};
  OwnedStream stream;
};

}  // namespace aliquot
