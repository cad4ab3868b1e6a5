#include <algorithm>
#include <bit>

#include "aliquot/device_kernels.h"
#include "cuda/launch.h"
#include "cuda/quads.h"
#include "cuda/statistics.h"

namespace aliquot::cuda {
namespace {

__device__ float4 operator+(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
__device__ float4 operator*(float4 a, float b) { return make_float4(a.x * b, a.y * b, a.z * b, a.w * b); }

template <unsigned capacity>
struct Parts {
  const void* data[capacity];
  unsigned count;
};

/// Up to this many parts, every load of a thread is under way before the first addition.
constexpr unsigned few = 8;

template <typename Element, unsigned capacity, typename At>
__device__ float4 sum_of(At at, const Parts<capacity>& parts) {
  const auto read = [&](unsigned part) { return at.read(static_cast<const Element*>(parts.data[part])); };
  float4 sum = read(0);
  if constexpr (capacity <= few) {
    float4 values[capacity];
#pragma unroll
    for (unsigned part = 1; part < capacity; ++part) values[part] = part < parts.count ? read(part) : float4{};
#pragma unroll
    for (unsigned part = 1; part < capacity; ++part) sum = part < parts.count ? sum + values[part] : sum;
  } else {
#pragma unroll 4
    for (unsigned part = 1; part < parts.count; ++part) sum = sum + read(part);
  }
  return sum;
}

/// A grid for parts in the device's own memory.
struct WholeDevice {
  static constexpr unsigned threads = block_threads;
  static constexpr unsigned blocks_per_multiprocessor = sum_blocks_per_multiprocessor;
  static unsigned blocks(std::size_t count) { return sum_blocks(count); }

  template <typename Element, typename Result, unsigned capacity, Accumulate>
  static constexpr unsigned unroll = capacity <= 2 ? 4 : 1;
};

/// Registers that a quad takes of a thread while it comes.
template <typename Element, typename Result, unsigned capacity, Accumulate accumulate>
constexpr unsigned registers_of_quad() {
  const auto of_result = accumulate == Accumulate::yes ? sizeof(typename Bits<Result>::Type) : 0;
  return static_cast<unsigned>((capacity * sizeof(typename Bits<Element>::Type) + of_result) / sizeof(unsigned));
}

/// One for parts in memory of peers. A link is full with some 1 MB asked for, and that takes the registers of these few
/// multiprocessors. Two H200s, 256 MiB of bf16 each way into fp32: 276 GB/s with 16 of them, 324 with 24, 333 with 64;
/// matrix products beside it are slowed down by 13, 15 and 23 %. A constant, for the reason that max_blocks is one.
struct FewMultiprocessors {
  static constexpr unsigned threads = 512;
  static constexpr unsigned blocks_per_multiprocessor = 1;
  static constexpr unsigned multiprocessors = 24;
  static unsigned blocks(std::size_t) { return multiprocessors; }

  /// That a thread gives to what it has asked for; it needs some more.
  static constexpr unsigned registers = 64;
  template <typename Element, typename Result, unsigned capacity, Accumulate accumulate>
  static constexpr unsigned unroll =
      capacity <= few ? std::bit_floor(registers / registers_of_quad<Element, Result, capacity, accumulate>()) : 1;
};

template <typename Grid, typename Element, typename Result, unsigned capacity, Accumulate accumulate>
__global__ void __launch_bounds__(Grid::threads, Grid::blocks_per_multiprocessor)
    reduce_kernel(const __grid_constant__ Parts<capacity> parts, float factor, Result* result, std::size_t count,
                  bool aligned, DeviceStatistics* statistics, Workspace* workspace) {
  SquareSum mine;
  const auto value_at = [&](auto at) {
    const float4 sum = sum_of<Element>(at, parts) * factor;
    return accumulate == Accumulate::yes ? at.load(result) + sum : sum;
  };
  constexpr unsigned unroll = Grid::template unroll<Element, Result, capacity, accumulate>;
  for_quads<unroll>(count, aligned, value_at, [&](auto at, float4 value) {
    at.store(value, result);
    mine.add(stored_as(result, value));
  });
  finish_statistics<Grid::threads>(mine, result, count, aligned, workspace, statistics);
}

template <typename T>
__global__ void __launch_bounds__(block_threads, sum_blocks_per_multiprocessor)
    statistics_kernel(const T* data, std::size_t count, bool aligned, DeviceStatistics* statistics,
                      Workspace* workspace) {
  SquareSum mine;
  for_quads<quads_under_way<T>>(
      count, aligned, [=](auto at) { return at.read(data); }, [&](auto, float4 value) { mine.add(value); });
  finish_statistics(mine, data, count, aligned, workspace, statistics);
}

template <unsigned capacity, typename Launch>
void with_parts(std::span<const void* const> from, const Launch& launch) {
  Parts<capacity> parts{{}, static_cast<unsigned>(from.size())};
  std::ranges::copy(from, parts.data);
  launch(parts);
}

template <typename Grid>
void reduce_on(std::span<const void* const> parts, DType dtype, float factor, void* result, DType result_dtype,
               std::size_t count, Accumulate accumulate, DeviceStatistics* statistics, void* workspace, Stream stream) {
  if (parts.empty() || parts.size() > max_parts) {
    throw InvalidArgument("reduce: " + std::to_string(parts.size()) + " parts; give one pointer per rank, at most " +
                          std::to_string(max_parts));
  }
  const bool aligned = aligned_to_16({result}) && std::ranges::all_of(parts, [](auto p) { return aligned_to_16({p}); });
  const auto launch = [&]<unsigned capacity>(const Parts<capacity>& given) {
    with_type(dtype, [&]<typename Element>(Element) {
      with_gradient_type(result_dtype, [&]<typename Result>(Result) {
        const auto kernel = accumulate == Accumulate::yes
                                ? reduce_kernel<Grid, Element, Result, capacity, Accumulate::yes>
                                : reduce_kernel<Grid, Element, Result, capacity, Accumulate::no>;
        kernel<<<Grid::blocks(count), Grid::threads, 0, native(stream)>>>(given, factor, static_cast<Result*>(result),
                                                                          count, aligned, statistics,
                                                                          static_cast<Workspace*>(workspace));
      });
    });
  };
  if (parts.size() <= 2) {
    with_parts<2>(parts, launch);
  } else if (parts.size() <= few) {
    with_parts<few>(parts, launch);
  } else {
    with_parts<max_parts>(parts, launch);
  }
  check(cudaGetLastError(), "launch reduce");
}

}  // namespace

std::size_t reduce_workspace_bytes() { return sizeof(Workspace); }

void reduce(std::span<const void* const> parts, DType dtype, float factor, void* result, DType result_dtype,
            std::size_t count, Accumulate accumulate, DeviceStatistics* statistics, void* workspace, Stream stream) {
  reduce_on<WholeDevice>(parts, dtype, factor, result, result_dtype, count, accumulate, statistics, workspace, stream);
}

void pull_and_reduce(std::span<const void* const> parts, DType dtype, float factor, void* result, DType result_dtype,
                     std::size_t count, Accumulate accumulate, DeviceStatistics* statistics, void* workspace,
                     Stream stream) {
  reduce_on<FewMultiprocessors>(parts, dtype, factor, result, result_dtype, count, accumulate, statistics, workspace,
                                stream);
}

void grad_statistics(const void* data, DType dtype, std::size_t count, DeviceStatistics* statistics, void* workspace,
                     Stream stream) {
  with_gradient_type(dtype, [&]<typename T>(T) {
    statistics_kernel<<<sum_blocks(count), block_threads, 0, native(stream)>>>(
        static_cast<const T*>(data), count, aligned_to_16({data}), statistics, static_cast<Workspace*>(workspace));
  });
  check(cudaGetLastError(), "launch grad_statistics");
}

}  // namespace aliquot::cuda
