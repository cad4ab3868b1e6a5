/// \file
/// A table of the host's, copied.
#pragma once

#include <vector>

#include "aliquot/memory_resource.h"
#include "aliquot/streams.h"

namespace aliquot {

/// The host waits for the copy.
template <typename T>
Buffer to_device(const std::vector<T>& values, MemoryResource& memory) {
  Buffer buffer(memory, values.size() * sizeof(T));
  copy_async(buffer.data(), values.data(), buffer.bytes(), {});
  synchronize({});
  return buffer;
}

}  // namespace aliquot
