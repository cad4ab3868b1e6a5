/// \file
/// The files of a checkpoint: safetensors files (https://huggingface.co/docs/safetensors), readable without this
/// library, and beside them the checksums of their chunks, which the format has no place for. Whoever writes a file
/// keeps its size, checksums and offsets; whoever reads it brings them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "aliquot/device.h"

namespace aliquot {

/// What one checksum is of: a file is cut into chunks of this size, its header among them, the last one shorter.
inline constexpr std::size_t chunk_bytes = std::size_t{4} << 20;

/// A tensor to be written. Its memory is contiguous, of the host or a device, and nobody writes there meanwhile:
/// neither what a stream was given before the call.
struct FileTensor {
  std::string name;   ///< UTF-8
  std::string dtype;  ///< a word of the format: F32, BF16, I64, U8, ...
  std::vector<std::uint64_t> shape;
  std::span<const std::byte> data;  ///< all of it; or, of split masters (split_master.h), the high halves
  const std::byte* low = nullptr;   ///< of split masters, which are written as the F32 that they are
  Device device = {};               ///< where that lies: the host, or for all tensors the same one

  std::uint64_t bytes() const noexcept { return low == nullptr ? data.size() : 2 * data.size(); }
};

/// How many threads write or read a file if nobody says so: while one waits for the disk, another computes. The caller
/// is one of them, so that none is as good as one.
inline constexpr std::size_t usual_file_threads = 2;

struct WrittenFile {
  std::uint64_t bytes = 0;
  std::vector<std::uint32_t> crcs;     ///< CRC32C of each chunk
  std::vector<std::uint64_t> offsets;  ///< of each tensor, in the order given, from the start of the file
};

/// Writes a new file that only its owner can read and gives it to the disk (fsync). Each thread takes the next chunk.
/// Tensors of larger elements come first, as the format's own writer lays them, so that each is aligned to its
/// elements. On an error no file is left.
/// \throws InvalidArgument  for tensors that the format can't hold; nothing was touched
/// \throws CheckpointError  with path, operation and the system's reason: the file is there already, the disk is full
/// \throws DeviceError      where memory of a device could not be read
WrittenFile write_shard_file(const std::string& path, std::span<const FileTensor> tensors,
                             std::size_t threads = usual_file_threads);

/// Some bytes of a file, and where they are to go.
struct RangeRead {
  std::uint64_t offset = 0;  ///< from the start of the file
  std::span<std::byte> into;
  std::string_view tensor;  ///< whose they are: for messages
};

/// What becomes of the kernel's copy of a chunk that was read.
enum class PageCache {
  keep,
  drop,  ///< if all of the chunk was wanted: its memory then serves the next one, where fresh memory would cost more
};

/// Reads `ranges`, in any order, which may overlap. The file must be a regular one, no link, of `bytes` bytes. Each
/// chunk that a range touches is read once and compared with its checksum before any of its bytes are handed out; after
/// an error some of the ranges may have been filled.
/// \throws CheckpointError  that names file, chunk and tensors; of several damaged chunks the first
void read_ranges(const std::string& path, std::uint64_t bytes, std::span<const std::uint32_t> crcs,
                 std::span<const RangeRead> ranges, std::size_t threads = usual_file_threads,
                 PageCache cache = PageCache::keep);

/// As read_ranges of the whole file, but that the bytes go nowhere.
/// \throws CheckpointError  that names the file and the first damaged chunk
void verify_file(const std::string& path, std::uint64_t bytes, std::span<const std::uint32_t> crcs,
                 std::size_t threads = usual_file_threads);

}  // namespace aliquot
