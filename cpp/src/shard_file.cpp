#include "aliquot/shard_file.h"

#include <algorithm>
#include <cstring>
#include <future>
#include <string>
#include <utility>

#include "aliquot/crc32c.h"
#include "aliquot/error.h"
#include "checkpoint_file.h"
#include "chunk_buffer.h"
#include "shard_header.h"

namespace aliquot {
namespace {

/// Small enough to stay in a core's cache between its checksum and its copy, which makes the checksum cost next to
/// nothing.
constexpr std::size_t step_bytes = std::size_t{64} << 10;

/// Cuts what it is given into chunks. One is written while the next is filled and its checksum taken.
class ChunkWriter {
 public:
  explicit ChunkWriter(CheckpointFile& file) : file_(file) {}

  void add(std::span<const std::byte> data) {
    while (!data.empty()) {
      const std::size_t count = std::min({data.size(), step_bytes, chunk_bytes - filled_});
      crc_ = crc32c(data.first(count), crc_);
      std::memcpy(filling_.data() + filled_, data.data(), count);
      filled_ += count;
      data = data.subspan(count);
      if (filled_ == chunk_bytes) write_chunk();
    }
  }

  std::vector<std::uint32_t> finish() {
    if (filled_ > 0) write_chunk();
    if (writing_.valid()) writing_.get();
    return std::move(crcs_);
  }

 private:
  void write_chunk() {
    const std::span chunk = filling_.first(std::exchange(filled_, 0));
    const std::uint64_t offset = crcs_.size() * chunk_bytes;
    crcs_.push_back(std::exchange(crc_, 0));
    if (writing_.valid()) writing_.get();
    writing_ = std::async([this, chunk, offset] { file_.write(chunk, offset); });
    std::swap(filling_, in_flight_);
  }

  CheckpointFile& file_;
  ChunkBuffer buffers_[2];
  std::span<std::byte> filling_ = buffers_[0].bytes(), in_flight_ = buffers_[1].bytes();
  std::size_t filled_ = 0;
  std::uint32_t crc_ = 0;  ///< of what is filled
  std::vector<std::uint32_t> crcs_;
  std::future<void> writing_;  // last: it is waited for before the buffers go
};

std::vector<std::uint32_t> write_all(CheckpointFile& file, const ShardHeader& header,
                                     std::span<const FileTensor> tensors) {
  file.reserve(header.file_bytes);
  ChunkWriter writer(file);
  writer.add(std::as_bytes(std::span(header.text)));
  for (const std::size_t i : header.order) writer.add(tensors[i].data);
  std::vector<std::uint32_t> crcs = writer.finish();
  file.sync();
  return crcs;
}

}  // namespace

WrittenFile write_shard_file(const std::string& path, std::span<const FileTensor> tensors) {
  ShardHeader header = header_of(tensors);
  CheckpointFile file = CheckpointFile::create(path);
  try {
    return {.bytes = header.file_bytes, .crcs = write_all(file, header, tensors), .offsets = std::move(header.offsets)};
  } catch (...) {
    file.remove();
    throw;
  }
}

}  // namespace aliquot
