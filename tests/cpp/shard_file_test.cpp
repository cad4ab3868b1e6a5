// Files of a checkpoint: whatever is wrong with one is found before a byte of it is used.
#include "aliquot/shard_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "aliquot/crc32c.h"
#include "aliquot/error.h"
#include "checkpoint_file.h"
#include "outcomes.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using testing::AllOf;
using testing::HasSubstr;
namespace fs = std::filesystem;

using Bytes = std::vector<std::byte>;

Bytes random_bytes(std::size_t count, unsigned seed) {
  std::mt19937_64 random(seed);
  Bytes bytes(count);
  for (std::size_t i = 0; i < count; i += 8) {
    const std::uint64_t word = random();
    std::memcpy(bytes.data() + i, &word, std::min<std::size_t>(8, count - i));
  }
  return bytes;
}

std::size_t page_of(std::size_t place) { return place / 4096 * 4096; }

/// A folder for one test, with a file of three tensors over several chunks in it.
class ShardFiles : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "aliquot-test-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    written_ = write_shard_file(path(), tensors_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string path(const std::string& name = "shard") const { return (folder_ / name).string(); }

  Bytes content() const {
    Bytes bytes(fs::file_size(path()));
    CheckpointFile::open(path()).read(bytes, 0);
    return bytes;
  }

  /// Writes `bytes` in place of the file.
  void put(std::span<const std::byte> bytes, const std::string& name = "shard") const {
    fs::remove(path(name));
    CheckpointFile::create(path(name)).write(Bytes(bytes.begin(), bytes.end()), 0);
  }

  /// All tensors; each must be what was written.
  void read() const {
    std::vector<Bytes> found;
    std::vector<RangeRead> ranges;
    for (const FileTensor& tensor : tensors_) found.emplace_back(tensor.data.size());
    for (std::size_t i = 0; i < found.size(); ++i) ranges.push_back({written_.offsets[i], found[i], tensors_[i].name});
    read_ranges(path(), written_.bytes, written_.crcs, ranges);
    for (std::size_t i = 0; i < found.size(); ++i) EXPECT_TRUE(std::ranges::equal(found[i], tensors_[i].data)) << i;
  }

  void expect_refused(std::size_t damaged_byte) const {
    const std::string in = path() + " is damaged in chunk " + std::to_string(damaged_byte / chunk_bytes) + " ";
    EXPECT_THAT(error_of<CheckpointError>([&] { read(); }), AllOf(HasSubstr(in), HasSubstr(tensor_at(damaged_byte))));
    EXPECT_THAT(error_of<CheckpointError>([&] { verify_file(path(), written_.bytes, written_.crcs); }), HasSubstr(in));
  }

  std::string tensor_at(std::size_t byte) const {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      if (byte >= written_.offsets[i] && byte < written_.offsets[i] + tensors_[i].data.size()) {
        return "'" + tensors_[i].name + "'";
      }
    }
    return "'";  // the header
  }

  const Bytes a_ = random_bytes(chunk_bytes + 4 * 1001, 1), b_ = random_bytes(2 * 500'000, 2),
              c_ = random_bytes(333, 3);
  const std::vector<FileTensor> tensors_ = {
      {"c", "U8", {333}, c_}, {"a", "F32", {chunk_bytes / 4 + 1001}, a_}, {"b", "BF16", {2, 250'000}, b_}};
  WrittenFile written_;
  fs::path folder_;
};

TEST_F(ShardFiles, GiveBackWhatWasWritten) {
  read();
  verify_file(path(), written_.bytes, written_.crcs);
  EXPECT_EQ(fs::status(path()).permissions(), fs::perms::owner_read | fs::perms::owner_write);
  EXPECT_EQ(fs::file_size(path()), written_.bytes);
}

TEST_F(ShardFiles, LayLargerElementsFirstAndAlignThem) {
  EXPECT_LT(written_.offsets[1], written_.offsets[2]);
  EXPECT_LT(written_.offsets[2], written_.offsets[0]);
  EXPECT_EQ(written_.offsets[1] % 8, 0U);
  EXPECT_EQ(written_.offsets[0] + c_.size(), written_.bytes);
}

TEST_F(ShardFiles, OfEverySizeAroundAChunkAndABlock) {
  const std::size_t header = written_.offsets[1];
  for (const std::size_t end : {chunk_bytes, 2 * chunk_bytes, std::size_t{4096}}) {
    for (int off = -2; off <= 2; ++off) {
      const Bytes data = random_bytes(end + off - header % 4096, 9);
      const FileTensor tensor{"x", "U8", {data.size()}, data};
      const WrittenFile written = write_shard_file(path("other"), std::span(&tensor, 1));
      Bytes found(data.size());
      const RangeRead range{written.offsets[0], found, "x"};
      read_ranges(path("other"), written.bytes, written.crcs, std::span(&range, 1));
      EXPECT_EQ(found, data);
      fs::remove(path("other"));
    }
  }
}

TEST_F(ShardFiles, AreTheSameOfAnyNumberOfThreads) {
  for (const std::size_t threads : {0U, 1U, 3U, 100U}) {
    const WrittenFile written = write_shard_file(path("other"), tensors_, threads);
    EXPECT_EQ(written.crcs, written_.crcs);
    Bytes found(a_.size());
    const RangeRead range{written.offsets[1], found, "a"};
    for (const PageCache cache : {PageCache::drop, PageCache::keep}) {
      std::ranges::fill(found, std::byte{});
      read_ranges(path("other"), written.bytes, written.crcs, std::span(&range, 1), threads, cache);
      EXPECT_EQ(found, a_);
    }
    verify_file(path("other"), written.bytes, written.crcs, threads);
    fs::remove(path("other"));
  }
}

TEST_F(ShardFiles, RangesMayOverlapAndComeInAnyOrder) {
  Bytes whole(a_.size()), middle(100), last(1), none;
  const std::size_t begin = written_.offsets[1];
  const RangeRead ranges[] = {{begin + a_.size() - 1, last, "a"},
                              {begin, whole, "a"},
                              {written_.bytes, none, "a"},
                              {begin + chunk_bytes - 50, middle, "a"}};
  read_ranges(path(), written_.bytes, written_.crcs, ranges);
  EXPECT_EQ(whole, a_);
  EXPECT_EQ(last[0], a_.back());
  EXPECT_TRUE(std::ranges::equal(middle, std::span(a_).subspan(chunk_bytes - 50, 100)));
}

TEST_F(ShardFiles, AFlippedBitIsFoundWhereverItIs) {
  Bytes bytes = content();
  std::mt19937 random(5);
  for (int i = 0; i < 100; ++i) {
    const std::size_t place = random() % bytes.size();
    const auto bit = static_cast<std::byte>(1U << (random() % 8));
    bytes[place] ^= bit;
    put(bytes);
    expect_refused(place);
    bytes[place] ^= bit;
  }
  put(bytes);
  read();
}

TEST_F(ShardFiles, AZeroedPageIsFound) {
  const Bytes bytes = content();
  std::mt19937 random(6);
  for (int i = 0; i < 30; ++i) {
    Bytes damaged = bytes;
    const std::size_t page = page_of(random() % bytes.size());
    std::fill_n(damaged.begin() + page, std::min<std::size_t>(4096, bytes.size() - page), std::byte{0});
    put(damaged);
    expect_refused(page == 0 ? written_.offsets[1] : page);
  }
}

TEST_F(ShardFiles, ATruncatedOrLongerFileIsRefused) {
  const Bytes bytes = content();
  std::mt19937 random(7);
  for (int i = 0; i < 30; ++i) {
    const std::size_t size = i == 0 ? bytes.size() - 1 : random() % bytes.size();
    put(std::span(bytes).first(size));
    EXPECT_THAT(error_of<CheckpointError>([&] { read(); }),
                AllOf(HasSubstr(path() + " has " + std::to_string(size) + " bytes"),
                      HasSubstr(std::to_string(written_.bytes) + " were written")));
  }
  Bytes longer = bytes;
  longer.resize(bytes.size() + 1);
  put(longer);
  EXPECT_THAT(error_of<CheckpointError>([&] { read(); }), HasSubstr("were written"));
}

TEST_F(ShardFiles, AnotherFileOfTheSameSizeIsRefused) {
  const Bytes other = random_bytes(a_.size(), 8);
  std::vector<FileTensor> tensors = tensors_;
  tensors[1].data = other;
  ASSERT_EQ(write_shard_file(path("other"), tensors).bytes, written_.bytes);
  fs::rename(path("other"), path());
  expect_refused(chunk_bytes - 1);
}

TEST_F(ShardFiles, NothingIsHandedOutOfADamagedChunk) {
  Bytes bytes = content();
  bytes[written_.offsets[0]] ^= std::byte{1};
  put(bytes);
  Bytes before(c_.size() - 1, std::byte{42}), into = before;
  const RangeRead range{written_.offsets[0] + 1, into, "c"};  // not the damaged byte itself
  EXPECT_THROW(read_ranges(path(), written_.bytes, written_.crcs, std::span(&range, 1)), CheckpointError);
  EXPECT_EQ(into, before);
}

TEST_F(ShardFiles, RangesAndChecksumsMustFitTheFile) {
  Bytes into(100);
  for (const std::uint64_t offset :
       {written_.bytes - 99, written_.bytes + 1, ~std::uint64_t{0}, ~std::uint64_t{0} - 50}) {
    const RangeRead range{offset, into, "a"};
    EXPECT_THAT(
        error_of<CheckpointError>([&] { read_ranges(path(), written_.bytes, written_.crcs, std::span(&range, 1)); }),
        AllOf(HasSubstr("tensor 'a'"), HasSubstr(path())));
  }
  const std::span crcs(written_.crcs);
  EXPECT_THAT(error_of<CheckpointError>([&] { verify_file(path(), written_.bytes, crcs.first(crcs.size() - 1)); }),
              HasSubstr("checksums of"));
}

TEST_F(ShardFiles, OnlyRegularFilesAreRead) {
  fs::create_symlink(path(), path("link"));
  fs::create_directory(path("folder"));
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  const std::pair<const char*, const char*> refused[] = {{"link", std::strerror(ELOOP)},
                                                         {"folder", "not a regular file"},
                                                         {"pipe", "not a regular file"},
                                                         {"missing", std::strerror(ENOENT)}};
  for (const auto& [name, words] : refused) {
    EXPECT_THAT(error_of<CheckpointError>([&] { verify_file(path(name), written_.bytes, written_.crcs); }),
                AllOf(HasSubstr(path(name)), HasSubstr(words)));
  }
  const std::string cut_short = path() + '\0' + "x";
  EXPECT_THAT(error_of<CheckpointError>([&] { verify_file(cut_short, written_.bytes, written_.crcs); }),
              HasSubstr("a zero byte"));
}

TEST_F(ShardFiles, WhatIsThereIsNeverOverwritten) {
  fs::create_symlink(path("nowhere"), path("link"));
  for (const char* name : {"shard", "link"}) {
    EXPECT_THAT(error_of<CheckpointError>([&] { write_shard_file(path(name), tensors_); }),
                AllOf(HasSubstr("create " + path(name)), HasSubstr(std::strerror(EEXIST))));
  }
  read();
  EXPECT_FALSE(fs::exists(path("nowhere")));
}

TEST_F(ShardFiles, AFolderThatIsNotThereIsNamed) {
  EXPECT_THAT(error_of<CheckpointError>([&] { write_shard_file(path("none/shard"), tensors_); }),
              AllOf(HasSubstr(path("none/shard")), HasSubstr(std::strerror(ENOENT))));
}

}  // namespace
}  // namespace aliquot
