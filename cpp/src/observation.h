/// \file
/// What a wait is waiting for, found out by watching its predicate.
#pragma once

#include <functional>
#include <vector>

#include "aliquot/communicator.h"

namespace aliquot {

/// The outcome of one call of a predicate, and the signals that it asked `reached` about in vain.
struct Observation {
  bool ready = false;
  std::vector<const Signal*> unreached;
};

Observation observe(const std::function<bool()>& ready);

}  // namespace aliquot
