/// \file
/// What a model consists of: parameters, and the units they are gathered in.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "aliquot/dtype.h"

namespace aliquot {

/// One parameter: its full, dotted name and its number of elements (0 is legal).
struct ParamSpec {
  std::string name;
  std::size_t numel = 0;
};

/// Parameters that are gathered together, alike in dtype and in whether they train. A block that mixes them is
/// several units, gathered one after the other.
struct UnitSpec {
  std::string name;
  std::vector<ParamSpec> params;
  DType dtype = DType::fp32;
  bool trainable = true;
  /// The unit stays gathered while other units come and go (the root, a unit around units): it gets a slot of its own.
  bool encloses_units = false;
};

}  // namespace aliquot
