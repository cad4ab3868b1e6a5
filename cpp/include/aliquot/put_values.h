/// \file
/// Values of the host on their way to where a rank keeps them.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "aliquot/device.h"

namespace aliquot {

struct Staging;

/// Values, in any memory of the host, and the memory of the host or a device that they belong in.
struct Put {
  std::span<const std::byte> values;
  std::byte* data = nullptr;  ///< as many bytes; or, of split masters (split_master.h), the high halves of fp32 values
  std::byte* low = nullptr;   ///< of split masters
};

/// Several threads that copy. Each has a way of its own to a device, through a little pinned memory: the driver alone
/// would copy with one. The ways are there from the beginning, so that whoever may not fail any more lacks nothing.
class ValuePutter {
 public:
  /// \throws DeviceError, where it is to put on a device
  ValuePutter(Device device, std::size_t threads);
  ~ValuePutter();

  /// Each thread takes the next step of the values. Nobody uses the memory meanwhile: neither what a stream was given
  /// before the call. Returns when all values are there.
  /// \throws DeviceError; some of the memory may have been overwritten
  void put(std::span<const Put> puts) const;

 private:
  Device device_;
  std::size_t threads_;
  std::vector<std::unique_ptr<Staging>> stagings_;  ///< of a device: one for each thread
};

}  // namespace aliquot
