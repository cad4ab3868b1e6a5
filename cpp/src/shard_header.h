/// \file
/// Where the tensors of a safetensors file lie, and the header that says so.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "aliquot/shard_file.h"

namespace aliquot {

struct ShardHeader {
  std::string text;                    ///< what the file begins with: a length of 8 bytes, and JSON; ends aligned to 8
  std::vector<std::size_t> order;      ///< the tensors as they lie in the file, one right behind the other
  std::vector<std::uint64_t> offsets;  ///< of each tensor as given, from the start of the file
  std::uint64_t file_bytes = 0;
};

/// \throws InvalidArgument  unless each tensor has a name of its own, a dtype of the format, and as much data as its
///                          shape says
ShardHeader header_of(std::span<const FileTensor> tensors);

}  // namespace aliquot
