/// \file
/// Memory of one chunk of a checkpoint file.
#pragma once

#include <cstddef>
#include <new>
#include <span>

#include "aliquot/shard_file.h"

namespace aliquot {

/// Aligned to pages, as disks and the kernel like it.
class ChunkBuffer {
 public:
  ChunkBuffer() : data_(static_cast<std::byte*>(::operator new(chunk_bytes, alignment))) {}
  ~ChunkBuffer() { ::operator delete(data_, alignment); }
  ChunkBuffer(const ChunkBuffer&) = delete;
  ChunkBuffer& operator=(const ChunkBuffer&) = delete;

  std::span<std::byte> bytes() const noexcept { return {data_, chunk_bytes}; }

 private:
  static constexpr std::align_val_t alignment{4096};

  std::byte* data_;
};

}  // namespace aliquot
