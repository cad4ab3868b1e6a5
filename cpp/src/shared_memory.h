/// \file
/// Memory that several processes of one host map, and that vanishes with the last of them.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <memory>

namespace aliquot {

/// An anonymous file (memfd) and this process's mapping of it. Nothing of it has a name in any file system.
class SharedMemory {
 public:
  /// Zeroed memory. \throws OutOfMemory
  static std::shared_ptr<SharedMemory> create(std::size_t bytes);
  /// The memory that process `creator` made, by the number of its open file there. Within one process this is the very
  /// same mapping, so that ranks that are threads see one another's addresses. \throws CommunicatorError
  static std::shared_ptr<SharedMemory> open(pid_t creator, int file, std::size_t bytes);

  SharedMemory(int file, std::size_t bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  std::byte* data() const { return data_; }
  int file() const { return file_; }
  /// Nobody can open the memory any more; mappings stay.
  void close_file() noexcept;

 private:
  int file_;
  std::size_t bytes_;
  std::byte* data_;
};

}  // namespace aliquot
