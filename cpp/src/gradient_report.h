/// \file
/// How ranks agree on what the gradients of a step are like.
#pragma once

#include "aliquot/engine.h"

namespace aliquot {

/// Collective. Also a rendezvous: on return every rank has all its gradients and reads no parameter of this step.
GradientReport exchange_gradient_report(const ShardStore& store, Reducer& reducer, Communicator& communicator,
                                        Stream stream = {});
/// The same from a device. The host waits for `stream`.
GradientReport exchange_gradient_report(const ShardStore& store, DeviceReducer& reducer, Communicator& communicator,
                                        Stream stream);

/// The square sums of all ranks, by unit and parameter, of what each says of its shards; NaN where an element is not
/// finite. Collective.
std::vector<std::vector<double>> exchange_square_sums(const std::vector<std::vector<GradStatistics>>& mine,
                                                      Communicator& communicator);

/// The parameter of `layout` that flat element `element` belongs to; empty for padding.
std::string param_name_at(const Layout& layout, std::size_t element);

}  // namespace aliquot
