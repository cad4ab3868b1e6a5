/// \file
/// Where persistent memory comes from, and the buffer that owns a piece of it.
#pragma once

#include <cstddef>
#include <utility>

#include "aliquot/device.h"

namespace aliquot {

/// A source of device or host memory. Implementations are thread-safe.
class MemoryResource {
 public:
  MemoryResource() = default;
  MemoryResource(const MemoryResource&) = delete;
  MemoryResource& operator=(const MemoryResource&) = delete;
  virtual ~MemoryResource() = default;

  /// `bytes` of zeroed memory, aligned to `alignment` (a power of two, at most 4096); usable on `stream`.
  /// \throws OutOfMemory, with the bytes asked for.
  virtual void* allocate(std::size_t bytes, std::size_t alignment, Stream stream) = 0;
  virtual void deallocate(void* pointer, std::size_t bytes, Stream stream) noexcept = 0;
  virtual Device device() const noexcept = 0;
};

/// Page-backed host memory; one object for the whole process.
MemoryResource& host_memory();

/// Sole owner of a piece of memory; frees it on the stream it was taken on. May be empty.
class Buffer {
 public:
  Buffer() = default;
  Buffer(MemoryResource& resource, std::size_t bytes, Stream stream = {})
      : resource_(&resource), data_(bytes ? resource.allocate(bytes, 64, stream) : nullptr), bytes_(bytes),
        stream_(stream) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) resource_->deallocate(data_, bytes_, stream_);
  }

  std::byte* data() const noexcept { return static_cast<std::byte*>(data_); }
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(resource_, other.resource_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(stream_, other.stream_);
  }

  MemoryResource* resource_ = nullptr;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  Stream stream_;
};

}  // namespace aliquot
