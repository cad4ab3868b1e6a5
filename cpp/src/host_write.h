/// \file
/// Values from outside into what a rank holds, on a host; device_write.h is the same for a device.
#pragma once

#include <cstddef>

#include "aliquot/shard_store.h"

namespace aliquot {

/// Makes parameters and masters of `values`, those of `range` of the flat unit.
void write_on_host(const ShardStore& store, std::size_t unit, Range range, const float* values);

}  // namespace aliquot
