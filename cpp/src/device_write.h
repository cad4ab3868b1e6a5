/// \file
/// Values from outside into a store on a device.
#pragma once

#include "aliquot/shard_store.h"
#include "aliquot/streams.h"

namespace aliquot {

/// Writes `values` (range.size() fp32 elements on the device) into what this rank holds of `range` of the flat unit,
/// parameter and master. The host waits.
void write_on_device(const ShardStore& store, std::size_t unit, Range range, const float* values, Device device,
                     Stream stream);

}  // namespace aliquot
