/// \file
/// The bytes of a tensor as a file holds them, from wherever its numbers lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "aliquot/memory_resource.h"
#include "aliquot/shard_file.h"
#include "aliquot/streams.h"

namespace aliquot {

/// One thread's. What lies on a device comes to the host through a little pinned memory, on a stream of its own.
class TensorReader {
 public:
  /// Most bytes at a time: few enough to stay in a core's cache between their copy and their checksum, which makes the
  /// checksum cost next to nothing; enough for a device, which copies them at once.
  static constexpr std::size_t step_bytes = std::size_t{256} << 10;

  /// Bytes [begin, begin + into.size()) of `tensor`, whole elements of it. \throws DeviceError
  void read(const FileTensor& tensor, std::uint64_t begin, std::span<std::byte> into);

 private:
  /// What a device copies with.
  struct Staging {
    explicit Staging(Device device) : stream(device, Priority::low) {}

    std::unique_ptr<MemoryResource> memory = pinned_memory();
    Buffer buffer{*memory, step_bytes};
    OwnedStream stream;
  };

  /// `data` itself where it is the host's; else a copy from the byte `first` of the staging on.
  std::span<const std::byte> on_host(Device device, std::span<const std::byte> data, std::size_t first = 0);

  std::optional<Staging> staging_;  ///< once a tensor has asked for it; all are on one device
};

}  // namespace aliquot
