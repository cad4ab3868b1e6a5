/// \file
/// What every call to the CUDA runtime and every kernel launch of this folder shares.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include <cuda_runtime_api.h>

#include "aliquot/device.h"
#include "aliquot/error.h"

namespace aliquot::cuda {

inline constexpr unsigned block_threads = 256;

/// Some four waves of blocks on the largest present device, so that the last wave's idle part is small. A constant,
/// and so the order of sums is the same on every device.
inline constexpr unsigned max_blocks = 4096;

/// Blocks for a grid-stride loop over `items`: one a thread, until there are enough blocks.
inline unsigned grid_blocks(std::size_t items) {
  return static_cast<unsigned>(std::clamp<std::size_t>((items + block_threads - 1) / block_threads, 1, max_blocks));
}

inline cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

inline bool aligned_to_16(std::initializer_list<const void*> arrays) {
  return std::ranges::all_of(arrays, [](const void* a) { return reinterpret_cast<std::uintptr_t>(a) % 16 == 0; });
}

/// \throws DeviceError unless `status` is cudaSuccess. `what` completes "CUDA could not ...".
inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // said here; it must not surface in a later call
  throw DeviceError(std::string("CUDA could not ") + what + ": " + cudaGetErrorString(status));
}

}  // namespace aliquot::cuda
