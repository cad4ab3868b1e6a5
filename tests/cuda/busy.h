/// \file
/// Work for a stream, whose length or result a test chooses.
#pragma once

#include <cstddef>
#include <cstdint>

#include "aliquot/device.h"

namespace aliquot::test {

/// Holds `stream` up for about `cycles` of its device's clock.
void linger(std::uint64_t cycles, Stream stream);

/// y[i] += a * x[i]
void axpy(float a, const float* x, float* y, std::size_t count, Stream stream);

}  // namespace aliquot::test
