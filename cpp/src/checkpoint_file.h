/// \file
/// One file of a checkpoint on its disk.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "descriptors.h"

namespace aliquot {

/// An open file, which several threads may write or read at a time. Calls go on where the system interrupts them or
/// does only a part. Every error is a CheckpointError with path, operation and the system's reason.
class CheckpointFile {
 public:
  /// A new file, for its owner only.
  static CheckpointFile create(const std::string& path);
  /// An old one, to read. Refuses links and what is not a regular file.
  static CheckpointFile open(const std::string& path);

  const std::string& path() const noexcept { return path_; }
  std::uint64_t size() const;

  /// Takes the space of `bytes` on the disk now, where the file system can, so that later writes don't lack it.
  void reserve(std::uint64_t bytes);
  /// Past the kernel's cache, which costs a copy and memory that others need, as long as offset and size allow that;
  /// `data` is aligned to 4096 bytes.
  void write(std::span<const std::byte> data, std::uint64_t offset);
  /// By the cache: ranks of a host read the same chunks, and who takes few bytes of one comes back to it.
  void read(std::span<std::byte> into, std::uint64_t offset) const;
  /// Nobody will soon ask for these bytes again: the cache's memory of them is free for others. Only a hint.
  void forget(std::uint64_t offset, std::uint64_t bytes) const noexcept;
  /// Returns when what was written is on the disk.
  void sync();
  void remove() noexcept;

 private:
  CheckpointFile(std::string path, const char* operation, int flags);
  ssize_t write_some(std::span<const std::byte> data, std::uint64_t offset);
  [[noreturn]] void fail(const std::string& operation, int error) const;

  std::string path_;
  Descriptor descriptor_;
  Descriptor direct_;  ///< what writes past the cache; none where the file system can't
};

}  // namespace aliquot
