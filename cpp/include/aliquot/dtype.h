/// \file
/// Element types of parameters, gradients and optimizer states.
#pragma once

#include <cstddef>
#include <string_view>

#include "aliquot/error.h"

namespace aliquot {

/// Roles and layouts carry every type; the update rules of this version compute in fp32.
enum class DType { fp32, bf16, fp16 };

constexpr std::size_t size_of(DType dtype) { return dtype == DType::fp32 ? 4 : 2; }

constexpr std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::fp32: return "fp32";
    case DType::bf16: return "bf16";
    case DType::fp16: return "fp16";
  }
  throw InvalidArgument("unknown dtype");
}

}  // namespace aliquot
