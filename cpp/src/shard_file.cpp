#include "aliquot/shard_file.h"

#include <algorithm>
#include <string>
#include <utility>

#include "aliquot/crc32c.h"
#include "aliquot/error.h"
#include "checkpoint_file.h"
#include "chunk_buffer.h"
#include "shard_header.h"
#include "side_by_side.h"
#include "tensor_reader.h"

namespace aliquot {
namespace {

/// Everything in a file, one behind the other: the header, which is as good as a tensor, and the tensors.
class Contents {
 public:
  Contents(const ShardHeader& header, std::span<const FileTensor> tensors) : bytes_(header.file_bytes) {
    header_.data = std::as_bytes(std::span(header.text));
    add(header_);
    for (const std::size_t i : header.order) add(tensors[i]);
  }

  std::uint64_t bytes() const noexcept { return bytes_; }
  std::size_t chunks() const noexcept { return (bytes_ + chunk_bytes - 1) / chunk_bytes; }

  /// The bytes from `offset` on, up to the end of a tensor at most. Returns how many.
  std::size_t read(std::uint64_t offset, std::span<std::byte> into, TensorReader& reader) const {
    const auto i = static_cast<std::size_t>(std::ranges::upper_bound(begins_, offset) - begins_.begin() - 1);
    const std::uint64_t begin = offset - begins_[i];
    const auto count = std::min<std::uint64_t>(tensors_[i]->bytes() - begin, into.size());
    reader.read(*tensors_[i], begin, into.first(count));
    return count;
  }

 private:
  void add(const FileTensor& tensor) {
    begins_.push_back(begins_.empty() ? 0 : begins_.back() + tensors_.back()->bytes());
    tensors_.push_back(&tensor);
  }

  FileTensor header_;
  std::uint64_t bytes_;
  std::vector<const FileTensor*> tensors_;
  std::vector<std::uint64_t> begins_;  ///< of each, from the start of the file
};

/// What a thread writes one chunk after the other with.
struct ChunkWriter {
  ChunkBuffer buffer;
  TensorReader reader;

  /// Returns the chunk's checksum.
  std::uint32_t write(std::size_t number, const Contents& contents, CheckpointFile& file) {
    const std::uint64_t offset = number * chunk_bytes;
    const auto chunk = buffer.bytes().first(std::min<std::uint64_t>(chunk_bytes, contents.bytes() - offset));
    std::uint32_t crc = 0;
    for (std::size_t filled = 0; filled < chunk.size();) {
      const auto step = chunk.subspan(filled, std::min(TensorReader::step_bytes, chunk.size() - filled));
      const std::size_t count = contents.read(offset + filled, step, reader);
      crc = crc32c(step.first(count), crc);  // of what is written, whatever becomes of the tensor meanwhile
      filled += count;
    }
    file.write(chunk, offset);
    return crc;
  }
};

std::vector<std::uint32_t> write_all(CheckpointFile& file, const Contents& contents, std::size_t threads) {
  file.reserve(contents.bytes());
  std::vector<std::uint32_t> crcs(contents.chunks());
  std::vector<ChunkWriter> writers(workers_for(crcs.size(), threads));
  side_by_side(crcs.size(), writers.size(), [&](std::size_t number, std::size_t worker) {
    crcs[number] = writers[worker].write(number, contents, file);
  });
  file.sync();
  return crcs;
}

}  // namespace

WrittenFile write_shard_file(const std::string& path, std::span<const FileTensor> tensors, std::size_t threads) {
  ShardHeader header = header_of(tensors);
  const Contents contents(header, tensors);
  CheckpointFile file = CheckpointFile::create(path);
  try {
    return {
        .bytes = contents.bytes(), .crcs = write_all(file, contents, threads), .offsets = std::move(header.offsets)};
  } catch (...) {
    file.remove();
    throw;
  }
}

}  // namespace aliquot
