/// \file
/// What every reducer asks of gradients before it takes them.
#pragma once

#include "aliquot/reducer.h"
#include "aliquot/shard_store.h"

namespace aliquot {

/// \throws InvalidArgument if the unit does not train, their number is not that of its parameters, or it was `offered`
/// in this micro-step
void require_takeable(const ShardStore& store, std::size_t unit, const Gradients& gradients, bool offered);

}  // namespace aliquot
