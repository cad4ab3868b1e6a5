// The part of device_kernels.h that needs no device.
#include "aliquot/device_kernels.h"

#include <algorithm>

namespace aliquot::cuda {

std::vector<Chunk> chunks_of(const Layout& layout, Range held) {
  std::vector<Chunk> chunks;
  for (const Segment& segment : layout.segments(held)) {
    for (std::size_t begin = segment.range.begin; begin < segment.range.end; begin += chunk_size) {
      const std::size_t count = std::min(chunk_size, segment.range.end - begin);
      chunks.push_back(
          {begin - held.begin, static_cast<std::uint32_t>(count), static_cast<std::uint32_t>(segment.param)});
    }
  }
  return chunks;
}

}  // namespace aliquot::cuda
