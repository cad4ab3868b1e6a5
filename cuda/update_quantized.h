/// \file
/// The update of states in 8 bits.
#pragma once

#include "aliquot/device_kernels.h"

namespace aliquot::cuda {

/// update() of device_kernels.h by this rule.
void update_quantized(const AdamW8bit& rule, const UnitUpdate& unit, Stream stream);

}  // namespace aliquot::cuda
