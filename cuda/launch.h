/// \file
/// What every kernel launch of this folder shares.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>

#include <cuda_runtime_api.h>

#include "aliquot/device.h"
#include "aliquot/error.h"

namespace aliquot::cuda {

inline constexpr unsigned block_threads = 256;

/// Blocks for a grid-stride loop over `count` items: enough to fill any present device, no more.
inline unsigned grid_blocks(std::size_t count) {
  constexpr std::size_t most = 2048;
  return static_cast<unsigned>(std::clamp<std::size_t>((count + block_threads - 1) / block_threads, 1, most));
}

inline cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

/// \throws DeviceError unless `status` is cudaSuccess. `what` completes "CUDA could not ...".
inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw DeviceError(std::string("CUDA could not ") + what + ": " + cudaGetErrorString(status));
}

}  // namespace aliquot::cuda
