/// \file
/// Dtypes by the names that Python gives them.
#pragma once

#include <string>

#include "aliquot/dtype.h"
#include "aliquot/error.h"

namespace aliquot::python {

/// \throws InvalidArgument
inline DType dtype_named(const std::string& name) {
  for (const DType dtype : {DType::fp32, DType::bf16, DType::fp16}) {
    if (name_of(dtype) == name) return dtype;
  }
  throw InvalidArgument("dtype is '" + name + "'; it is fp32, bf16 or fp16");
}

}  // namespace aliquot::python
