#include <algorithm>

#include "aliquot/device_kernels.h"
#include "cuda/launch.h"
#include "cuda/quads.h"

namespace aliquot::cuda {
namespace {

/// Where one parameter begins in the flat unit, and what is to lie there: `numel` elements of data, then zeros up to
/// where the next one begins. Parameters begin at multiples of Layout::alignment, so a quad is in one piece only.
struct Piece {
  const void* data;
  std::size_t begin;
  std::size_t numel;
  DType dtype;
  bool aligned;
};

/// Pieces travel as arguments of the kernel, which may be 4 KB, so that nothing is copied beforehand.
constexpr unsigned pieces_per_launch = 96;

struct Pieces {
  Piece of[pieces_per_launch];
  unsigned count;
  std::size_t end;  ///< of the last one
};

/// What a block packs: eight quads a thread.
constexpr unsigned quads_per_thread = 8;
constexpr std::size_t quad_stride = 4 * block_threads;
constexpr std::size_t tile_size = quads_per_thread * quad_stride;

/// The last piece, from `piece` on, that begins at or before `at`.
__device__ unsigned piece_at(const Pieces& pieces, unsigned piece, std::size_t at) {
  while (piece + 1 < pieces.count && pieces.of[piece + 1].begin <= at) ++piece;
  return piece;
}

/// A tile that lies in one piece, and may be moved four elements at a time.
template <typename Source, typename Full>
__device__ void pack_tile(const Source* source, Full* full) {
  const auto quad = [](unsigned index) { return Whole{4 * threadIdx.x + index * quad_stride}; };
  float4 values[quads_per_thread];
#pragma unroll
  for (unsigned i = 0; i < quads_per_thread; ++i) values[i] = quad(i).read(source);
#pragma unroll
  for (unsigned i = 0; i < quads_per_thread; ++i) quad(i).store(values[i], full);
}

template <typename Source>
__device__ float4 read_quad(const Piece& piece, std::size_t offset) {
  float4 value{};
  if (piece.data == nullptr || offset >= piece.numel) return value;
  at_quad(offset, piece.numel, piece.aligned,
          [&](auto at) { value = at.read(static_cast<const Source*>(piece.data)); });
  return value;
}

/// A tile of several pieces.
template <typename Full>
__device__ void pack_quads(const Pieces& pieces, unsigned piece, Full* full, bool full_aligned, std::size_t begin,
                           std::size_t end) {
  for (begin += 4 * threadIdx.x; begin < end; begin += quad_stride) {
    piece = piece_at(pieces, piece, begin);
    const Piece& from = pieces.of[piece];
    with_type(from.dtype, [&]<typename Source>(Source) {
      const float4 value = read_quad<Source>(from, begin - from.begin);
      at_quad(begin, end, full_aligned, [&](auto at) { at.store(value, full); });
    });
  }
}

template <typename Full>
__global__ void __launch_bounds__(block_threads)
    pack_kernel(const __grid_constant__ Pieces pieces, Full* full, bool full_aligned, std::uint8_t* present) {
  if (blockIdx.x == 0 && threadIdx.x < pieces.count && present != nullptr && pieces.of[threadIdx.x].data != nullptr) {
    present[threadIdx.x] |= 1;
  }
  const std::size_t begin = pieces.of[0].begin + blockIdx.x * tile_size;
  const std::size_t end = min(begin + tile_size, pieces.end);
  const unsigned piece = piece_at(pieces, 0, begin);
  const Piece& from = pieces.of[piece];
  const bool whole = end - begin == tile_size && end - from.begin <= from.numel;
  if (whole && from.data != nullptr && from.aligned && full_aligned) {
    with_type(from.dtype, [&]<typename Source>(Source) {
      pack_tile(static_cast<const Source*>(from.data) + (begin - from.begin), full + begin);
    });
  } else {
    pack_quads(pieces, piece, full, full_aligned, begin, end);
  }
}

Pieces pieces_from(const Layout& layout, std::span<const PackSource> sources, std::size_t first) {
  Pieces pieces{};
  const std::size_t last = std::min(first + pieces_per_launch, sources.size());
  for (std::size_t param = first; param < last; ++param) {
    const PackSource& source = sources[param];
    const Range range = layout.param(param);
    pieces.of[pieces.count++] = {source.data, range.begin, range.size(), source.dtype, aligned_to_16({source.data})};
  }
  pieces.end = last < sources.size() ? layout.param(last).begin : layout.numel();
  return pieces;
}

}  // namespace

void pack(const Layout& layout, std::span<const PackSource> sources, void* full, DType full_dtype,
          std::uint8_t* present, Stream stream) {
  if (sources.size() != layout.unit().params.size()) {
    throw InvalidArgument("pack: unit '" + layout.unit().name + "' has " + std::to_string(layout.unit().params.size()) +
                          " parameters, but " + std::to_string(sources.size()) + " gradients were given");
  }
  for (std::size_t first = 0; first < sources.size(); first += pieces_per_launch) {
    const Pieces pieces = pieces_from(layout, sources, first);
    const std::size_t tiles = (pieces.end - pieces.of[0].begin + tile_size - 1) / tile_size;
    const auto blocks = static_cast<unsigned>(std::max<std::size_t>(tiles, 1));  // one to mark what is present
    with_type(full_dtype, [&]<typename Full>(Full) {
      pack_kernel<<<blocks, block_threads, 0, native(stream)>>>(pieces, static_cast<Full*>(full), aligned_to_16({full}),
                                                                present == nullptr ? nullptr : present + first);
    });
    check(cudaGetLastError(), "launch pack");
  }
}

}  // namespace aliquot::cuda
