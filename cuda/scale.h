/// \file
/// The device's half of kernels.h's scale.
#pragma once

#include <cstddef>

#include "aliquot/device.h"

namespace aliquot::cuda {

/// data[i] *= *factor, on `stream`; returns before it is done. `data` (aligned to 16 bytes) and `factor` lie in device
/// memory: a clip factor or loss scale that was computed on the device never visits the host.
/// \throws DeviceError if the kernel could not be launched.
void scale(float* data, std::size_t count, const float* factor, Stream stream);

}  // namespace aliquot::cuda
