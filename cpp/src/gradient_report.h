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

/// Of this rank's shards, by unit and parameter, each measured by itself. Zero where there is no gradient.
template <typename AnyReducer>
std::vector<std::vector<GradStatistics>> statistics_by_param(const ShardStore& store, AnyReducer& reducer, int rank,
                                                             Stream stream) {
  std::vector<std::vector<GradStatistics>> statistics;
  for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
    const Layout& layout = store.layout(unit);
    std::vector<GradStatistics>& of_unit = statistics.emplace_back(layout.unit().params.size());
    if (reducer.empty(unit)) continue;
    for (const Segment& segment : layout.segments(layout.shard(rank))) {
      of_unit[segment.param] = reducer.measure(unit, segment.range, stream);
    }
  }
  return statistics;
}

/// The square sums of all ranks of what each says of its shards; NaN where an element is not finite. Collective.
std::vector<std::vector<double>> exchange_square_sums(const std::vector<std::vector<GradStatistics>>& mine,
                                                      Communicator& communicator);

/// The parameter of `layout` that flat element `element` belongs to; empty for padding.
std::string param_name_at(const Layout& layout, std::size_t element);

}  // namespace aliquot
