/// \file
/// Square sum, non-finite count and first bad element of what a grid of blocks meets, in an order of additions that
/// depends on the grid alone.
#pragma once

#include <cstddef>

#include "aliquot/device_kernels.h"
#include "cuda/launch.h"

namespace aliquot::cuda {

/// DeviceStatistics without initial values, which shared memory cannot have.
struct Statistics {
  double square_sum;
  unsigned long long non_finite;
  unsigned long long first_bad;

  static __device__ Statistics none() { return {0, 0, DeviceStatistics::none}; }

  __device__ void add(const Statistics& other) {
    square_sum += other.square_sum;
    non_finite += other.non_finite;
    first_bad = min(first_bad, other.first_bad);
  }

  /// Zeros behind the end of the array change nothing.
  __device__ void add(float4 quad, std::size_t begin) {
    double sum = square_sum_of(quad);
    if (!isfinite(sum)) sum = square_sum_of(without_bad(quad, begin));
    square_sum += sum;
  }

 private:
  /// Squares of fp32 are exact in fp64 and never overflow it: fused or not gives the same bits, and the sum is finite
  /// where the elements are. Few instructions, for bf16 comes faster than any other element.
  static __device__ double square_sum_of(float4 quad) {
    const double x = quad.x, y = quad.y, z = quad.z, w = quad.w;
    return fma(x, x, y * y) + fma(z, z, w * w);
  }

  /// Counts what is not finite and puts zeros there.
  __device__ float4 without_bad(float4 quad, std::size_t begin) {
    float* const values[] = {&quad.x, &quad.y, &quad.z, &quad.w};
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      if (isfinite(*values[i])) continue;
      *values[i] = 0;
      ++non_finite;
      first_bad = min(first_bad, static_cast<unsigned long long>(begin + i));
    }
    return quad;
  }
};

/// What a grid leaves for its last block. Zeroed before its first use; every use leaves `arrived` at zero.
struct Workspace {
  unsigned arrived;
  Statistics partials[max_blocks];
};

inline __device__ Statistics warp_sum(Statistics mine) {
  constexpr unsigned all = 0xFFFFFFFF;
#pragma unroll
  for (unsigned distance = 16; distance > 0; distance /= 2) {
    mine.add({__shfl_down_sync(all, mine.square_sum, distance), __shfl_down_sync(all, mine.non_finite, distance),
              __shfl_down_sync(all, mine.first_bad, distance)});
  }
  return mine;
}

/// Right in thread 0. Every thread of the block must call it.
inline __device__ Statistics block_sum(Statistics mine) {
  constexpr unsigned warps = block_threads / 32;
  __shared__ Statistics of_warps[warps];
  mine = warp_sum(mine);
  __syncthreads();  // an earlier call may still be read
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x < 32) mine = warp_sum(threadIdx.x < warps ? of_warps[threadIdx.x] : Statistics::none());
  return mine;
}

/// True in every thread of the block that is the last of the grid to call it; what thread 0 of the others wrote before
/// their calls is then visible.
inline __device__ bool is_last_block(unsigned* arrived) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicInc(arrived, gridDim.x - 1) == gridDim.x - 1;  // which also sets it back to zero
    __threadfence();
  }
  __syncthreads();
  return last;
}

/// *result = the sum over all threads of the grid. Every thread must call it, once.
inline __device__ void grid_sum(const Statistics& mine, Workspace* workspace, DeviceStatistics* result) {
  const Statistics of_block = block_sum(mine);
  if (threadIdx.x == 0) workspace->partials[blockIdx.x] = of_block;
  if (!is_last_block(&workspace->arrived)) return;
  Statistics sum = Statistics::none();
  for (unsigned block = threadIdx.x; block < gridDim.x; block += blockDim.x) {
    const Statistics* const partial = &workspace->partials[block];
    sum.add({__ldcg(&partial->square_sum), __ldcg(&partial->non_finite), __ldcg(&partial->first_bad)});
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) *result = {sum.square_sum, sum.non_finite, sum.first_bad};
}

}  // namespace aliquot::cuda
