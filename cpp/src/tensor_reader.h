/// \file
/// The bytes of a tensor as a file holds them, from wherever its numbers lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "aliquot/shard_file.h"
#include "staging.h"

namespace aliquot {

/// One thread's. What lies on a device comes to the host through a little pinned memory, on a stream of its own.
class TensorReader {
 public:
  /// Most bytes at a time.
  static constexpr std::size_t step_bytes = Staging::bytes;

  /// Bytes [begin, begin + into.size()) of `tensor`, whole elements of it. \throws DeviceError
  void read(const FileTensor& tensor, std::uint64_t begin, std::span<std::byte> into);

 private:
  /// `data` itself where it is the host's; else a copy from the byte `first` of the staging on.
  std::span<const std::byte> on_host(Device device, std::span<const std::byte> data, std::size_t first = 0);

  std::optional<Staging> staging_;  ///< once a tensor has asked for it; all are on one device
};

}  // namespace aliquot
