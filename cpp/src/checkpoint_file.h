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
  // Past the kernel's cache, which costs a copy and memory that others need, where offset and size allow that and the
  // memory is aligned to 4096 bytes.

  void write(std::span<const std::byte> data, std::uint64_t offset);
  void read(std::span<std::byte> into, std::uint64_t offset) const;
  /// Returns when what was written is on the disk.
  void sync();
  void remove() noexcept;

 private:
  CheckpointFile(std::string path, const char* operation, int flags);
  void open_past_cache(int mode);
  /// What `call(descriptor)` returns, a write or a read: past the cache if it can be.
  template <typename Call>
  ssize_t move(std::uint64_t offset, std::size_t bytes, const Call& call) const;
  [[noreturn]] void fail(const std::string& operation, int error) const;

  std::string path_;
  Descriptor descriptor_;
  Descriptor direct_;  ///< the same past the cache; none where the file system can't
};

}  // namespace aliquot
