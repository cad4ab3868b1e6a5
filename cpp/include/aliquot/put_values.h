/// \file
/// Values of the host on their way to a device.
#pragma once

#include <cstddef>
#include <span>

#include "aliquot/device.h"

namespace aliquot {

/// Values, in any memory of the host, and the memory of a device that they belong in.
struct Put {
  std::span<const std::byte> values;
  std::byte* data = nullptr;  ///< as many bytes; or, of split masters (split_master.h), the high halves of fp32 values
  std::byte* low = nullptr;   ///< of split masters
};

/// Each of `threads` threads takes the next step of the values, through a little pinned memory: the driver alone would
/// copy with one. Nobody uses the memory meanwhile: neither what a stream was given before the call. Returns when all
/// values are there.
/// \throws DeviceError; some of the memory may have been overwritten
void put_values(std::span<const Put> puts, Device device, std::size_t threads);

}  // namespace aliquot
