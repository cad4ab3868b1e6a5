/// \file
/// Square sum, non-finite count and first bad element of what a grid of blocks meets. The order of additions depends on
/// the grid and on which thread meets what: kernels that go through for_quads() on grids of sum_blocks() agree.
#pragma once

#include <algorithm>
#include <cstddef>

#include "aliquot/device_kernels.h"
#include "cuda/launch.h"
#include "cuda/quads.h"

namespace aliquot::cuda {

/// All blocks of an H100 or H200 (132 multiprocessors) run at once, so that the sums over a block's threads, during
/// which it loads nothing, come once and at the end. A constant, for the reason that max_blocks is one.
inline constexpr unsigned sum_blocks_per_multiprocessor = 4;
inline constexpr unsigned max_sum_blocks = sum_blocks_per_multiprocessor * 132;

inline unsigned sum_blocks(std::size_t count) { return std::min(grid_blocks(count / 4), max_sum_blocks); }

/// Squares of fp32 are exact in fp64 and never overflow it: fused or not gives the same bits, and the sum is finite
/// where the elements are. A sum for each place in a quad: a conversion and an FMA an element, and no branch, for bf16
/// comes faster than any other element. Zeros behind the end of the array change nothing.
struct SquareSum {
  double x = 0, y = 0, z = 0, w = 0;

  __device__ void add(float4 quad) {
    x = plus_square(x, quad.x);
    y = plus_square(y, quad.y);
    z = plus_square(z, quad.z);
    w = plus_square(w, quad.w);
  }
  __device__ double total() const { return (x + y) + (z + w); }

 private:
  static __device__ double plus_square(double sum, double value) { return fma(value, value, sum); }
};

/// What is not finite.
struct BadElements {
  unsigned long long count = 0;
  unsigned long long first = DeviceStatistics::none;

  /// Counts those of `quad` and puts zeros there.
  __device__ float4 taken_from(float4 quad, std::size_t begin) {
    float* const values[] = {&quad.x, &quad.y, &quad.z, &quad.w};
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      if (isfinite(*values[i])) continue;
      *values[i] = 0;
      ++count;
      first = min(first, static_cast<unsigned long long>(begin + i));
    }
    return quad;
  }
};

/// What a grid leaves for its last block. Zeroed before its first use; every use leaves all but `partials` at zero.
struct Workspace {
  unsigned arrived;
  unsigned long long bad_count;
  unsigned long long not_first_bad;  ///< ~BadElements::first, so that zero is none
  double partials[max_sum_blocks];
};

inline __device__ double warp_sum(double mine) {
  constexpr unsigned all = 0xFFFFFFFF;
#pragma unroll
  for (unsigned distance = 16; distance > 0; distance /= 2) mine += __shfl_down_sync(all, mine, distance);
  return mine;
}

/// Right in thread 0. Every thread of the block must call it.
template <unsigned threads>
__device__ double block_sum(double mine) {
  constexpr unsigned warps = threads / 32;
  __shared__ double of_warps[warps];
  mine = warp_sum(mine);
  __syncthreads();  // an earlier call may still be read
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = mine;
  __syncthreads();
  return threadIdx.x < 32 ? warp_sum(threadIdx.x < warps ? of_warps[threadIdx.x] : 0) : 0;
}

/// True in every thread of the block that is the last of the grid to call it; what the others wrote before a barrier
/// of their block and then their call is visible.
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

/// *result = the sum over all threads of the grid, `threads` to a block. Every thread must call it, once.
template <unsigned threads>
__device__ void grid_sum(double mine, const BadElements& bad, Workspace* workspace, DeviceStatistics* result) {
  if (bad.count != 0) {
    atomicAdd(&workspace->bad_count, bad.count);
    atomicMax(&workspace->not_first_bad, ~bad.first);
  }
  const double of_block = block_sum<threads>(mine);
  if (threadIdx.x == 0) workspace->partials[blockIdx.x] = of_block;
  if (!is_last_block(&workspace->arrived)) return;
  double sum = 0;
#pragma unroll
  for (unsigned first = 0; first < max_sum_blocks; first += threads) {
    const unsigned block = first + threadIdx.x;
    sum += block < gridDim.x ? __ldcg(&workspace->partials[block]) : 0;
  }
  sum = block_sum<threads>(sum);
  if (threadIdx.x != 0) return;
  *result = {sum, __ldcg(&workspace->bad_count), ~__ldcg(&workspace->not_first_bad)};
  workspace->bad_count = workspace->not_first_bad = 0;
}

/// *result = the statistics of data[0, count), each thread having added to `mine` the quads that it meets there. One
/// that met what is not finite reads them again: rare, and so not looked for in every quad.
template <unsigned threads = block_threads, typename T>
__device__ void finish_statistics(SquareSum mine, const T* data, std::size_t count, bool aligned, Workspace* workspace,
                                  DeviceStatistics* result) {
  BadElements bad;
  if (!isfinite(mine.total())) {
    mine = {};
    for_quads<1>(
        count, aligned, [=](auto at) { return at.load(data); },
        [&](auto at, float4 value) { mine.add(bad.taken_from(value, at.begin)); });
  }
  grid_sum<threads>(mine.total(), bad, workspace, result);
}

}  // namespace aliquot::cuda
