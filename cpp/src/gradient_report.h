/// \file
/// How ranks agree on what the gradients of a step are like.
#pragma once

#include "aliquot/engine.h"

namespace aliquot {

/// Collective. Also a rendezvous: on return every rank has all its gradients and reads no parameter of this step.
GradientReport exchange_gradient_report(const ShardStore& store, Reducer& reducer, Communicator& communicator);

}  // namespace aliquot
