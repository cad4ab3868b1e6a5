// Reading by range: every byte handed out belongs to a chunk whose checksum was right.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "aliquot/crc32c.h"
#include "aliquot/error.h"
#include "aliquot/shard_file.h"
#include "checkpoint_file.h"
#include "chunk_buffer.h"
#include "side_by_side.h"

namespace aliquot {
namespace {

/// A file that is as long as it was written, and the checksums it was written with.
class ChunkedFile {
 public:
  ChunkedFile(const std::string& path, std::uint64_t bytes, std::span<const std::uint32_t> crcs)
      : file_(CheckpointFile::open(path)), bytes_(bytes), crcs_(crcs) {
    if (const std::uint64_t found = file_.size(); found != bytes) {
      throw CheckpointError(path + " has " + std::to_string(found) + " bytes; " + std::to_string(bytes) +
                            " were written");
    }
    const std::uint64_t chunks = bytes / chunk_bytes + (bytes % chunk_bytes != 0);
    if (chunks == crcs.size()) return;
    throw CheckpointError(path + " has " + std::to_string(chunks) + " chunks, but there are checksums of " +
                          std::to_string(crcs.size()));
  }

  const std::string& path() const noexcept { return file_.path(); }
  std::uint64_t bytes() const noexcept { return bytes_; }
  std::size_t chunks() const noexcept { return crcs_.size(); }

  std::span<const std::byte> read(std::size_t number, std::span<std::byte> buffer) const {
    const std::uint64_t begin = number * chunk_bytes;
    const auto chunk = buffer.first(std::min<std::uint64_t>(chunk_bytes, bytes_ - begin));
    file_.read(chunk, begin);
    return chunk;
  }

  void forget(std::size_t number, std::size_t bytes) const noexcept { file_.forget(number * chunk_bytes, bytes); }

  /// \param tensors  words about what is in it, for the message
  void require_right(std::size_t number, std::span<const std::byte> chunk, const std::string& tensors) const {
    if (crc32c(chunk) == crcs_[number]) return;
    const std::uint64_t begin = number * chunk_bytes;
    throw CheckpointError(path() + " is damaged in chunk " + std::to_string(number) + " (bytes " +
                          std::to_string(begin) + " to " + std::to_string(begin + chunk.size()) + ")" + tensors +
                          ": its checksum is not what was written");
  }

 private:
  CheckpointFile file_;
  std::uint64_t bytes_;
  std::span<const std::uint32_t> crcs_;
};

/// `visit(number, chunk)` for each of these chunks, several at a time.
template <typename Visit>
void for_each_chunk(const ChunkedFile& file, std::span<const std::size_t> numbers, std::size_t threads,
                    const Visit& visit) {
  const std::vector<ChunkBuffer> buffers(workers_for(numbers.size(), threads));
  side_by_side(numbers.size(), buffers.size(), [&](std::size_t i, std::size_t worker) {
    visit(numbers[i], file.read(numbers[i], buffers[worker].bytes()));
  });
}

/// The part of a range that lies in one chunk.
struct Piece {
  std::size_t chunk;
  std::size_t offset;  ///< in the chunk
  std::span<std::byte> into;
  std::string_view tensor;
};

void require_inside(const ChunkedFile& file, const RangeRead& range) {
  if (range.offset <= file.bytes() && range.into.size() <= file.bytes() - range.offset) return;
  throw CheckpointError("tensor '" + std::string(range.tensor) + "': " + std::to_string(range.into.size()) +
                        " bytes from byte " + std::to_string(range.offset) + " on are not inside of " + file.path() +
                        ", which has " + std::to_string(file.bytes()));
}

void cut(const RangeRead& range, std::vector<Piece>& pieces) {
  std::uint64_t offset = range.offset;
  for (auto rest = range.into; !rest.empty();) {
    const std::size_t in_chunk = offset % chunk_bytes;
    const std::size_t count = std::min(rest.size(), chunk_bytes - in_chunk);
    pieces.push_back({offset / chunk_bytes, in_chunk, rest.first(count), range.tensor});
    rest = rest.subspan(count);
    offset += count;
  }
}

/// By chunk.
std::vector<Piece> pieces_of(const ChunkedFile& file, std::span<const RangeRead> ranges) {
  std::vector<Piece> pieces;
  for (const RangeRead& range : ranges) {
    require_inside(file, range);
    cut(range, pieces);
  }
  std::ranges::sort(pieces, {}, [](const Piece& piece) { return std::pair(piece.chunk, piece.offset); });
  return pieces;
}

/// "of tensor 'a'", or how many more there are.
std::string tensors_of(std::span<const Piece> pieces) {
  std::vector<std::string_view> names;
  for (const Piece& piece : pieces) {
    if (std::ranges::find(names, piece.tensor) == names.end()) names.push_back(piece.tensor);
  }
  constexpr std::size_t most = 3;
  std::string text = names.size() == 1 ? ", tensor " : ", one of the tensors ";
  for (std::size_t i = 0; i < std::min(most, names.size()); ++i) {
    text += (i == 0 ? "'" : ", '") + std::string(names[i]) + "'";
  }
  return names.size() <= most ? text : text + " and " + std::to_string(names.size() - most) + " more";
}

std::vector<std::size_t> chunks_of(std::span<const Piece> pieces) {
  std::vector<std::size_t> numbers;
  for (const Piece& piece : pieces) {
    if (numbers.empty() || numbers.back() != piece.chunk) numbers.push_back(piece.chunk);
  }
  return numbers;
}

std::size_t bytes_of(std::span<const Piece> pieces) {
  std::size_t bytes = 0;
  for (const Piece& piece : pieces) bytes += piece.into.size();
  return bytes;
}

}  // namespace

void read_ranges(const std::string& path, std::uint64_t bytes, std::span<const std::uint32_t> crcs,
                 std::span<const RangeRead> ranges, std::size_t threads, PageCache cache) {
  const ChunkedFile file(path, bytes, crcs);
  const std::vector<Piece> pieces = pieces_of(file, ranges);
  for_each_chunk(file, chunks_of(pieces), threads, [&](std::size_t number, std::span<const std::byte> chunk) {
    const auto in_chunk = std::ranges::equal_range(pieces, number, {}, &Piece::chunk);
    file.require_right(number, chunk, tensors_of(in_chunk));
    for (const Piece& piece : in_chunk) std::memcpy(piece.into.data(), chunk.data() + piece.offset, piece.into.size());
    if (cache == PageCache::drop && bytes_of(in_chunk) >= chunk.size()) file.forget(number, chunk.size());
  });
}

void verify_file(const std::string& path, std::uint64_t bytes, std::span<const std::uint32_t> crcs,
                 std::size_t threads) {
  const ChunkedFile file(path, bytes, crcs);
  std::vector<std::size_t> numbers(file.chunks());
  std::iota(numbers.begin(), numbers.end(), std::size_t{0});
  for_each_chunk(file, numbers, threads,
                 [&](std::size_t number, std::span<const std::byte> chunk) { file.require_right(number, chunk, ""); });
}

}  // namespace aliquot
