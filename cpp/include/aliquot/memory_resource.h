/// \file
/// Where persistent memory comes from, and the buffer that owns a piece of it.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
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

/// Page-locked host memory, which a device copies to and from while the host goes on; each piece has exactly its size.
/// \throws DeviceError in a build without CUDA.
std::unique_ptr<MemoryResource> pinned_memory();

/// Memory of a device, each piece on its own: for what grows. Zeroed when allocate returns, for every stream.
/// \throws DeviceError if there is no such device
std::unique_ptr<MemoryResource> device_memory(Device device);

/// One piece of memory, planned beforehand and handed out from its beginning. What is given back is free again when the
/// arena dies.
class DeviceArena final : public MemoryResource {
 public:
  /// What a piece takes is rounded up to this.
  static constexpr std::size_t granule = 512;
  static constexpr std::size_t planned(std::size_t bytes) { return (bytes + granule - 1) / granule * granule; }

  /// \param capacity  the sum of planned() of all pieces
  /// \throws OutOfMemory, with what is wanted and what is there; DeviceError if there is no such device
  DeviceArena(Device device, std::size_t capacity) : DeviceArena(device_memory(device), capacity) {}
  /// All of it comes from `source`. \throws as source->allocate
  DeviceArena(std::unique_ptr<MemoryResource> source, std::size_t capacity);
  ~DeviceArena() override;

  void* allocate(std::size_t bytes, std::size_t alignment, Stream stream) override;
  void deallocate(void*, std::size_t, Stream) noexcept override {}
  Device device() const noexcept override { return source_->device(); }
  std::size_t capacity() const noexcept { return whole_.size(); }
  std::size_t used() const;
  bool owns(const void* pointer) const noexcept {
    return whole_.data() <= pointer && pointer < whole_.data() + whole_.size();
  }
  /// All of it, handed out or not.
  std::span<std::byte> whole() const noexcept { return whole_; }

 private:
  std::unique_ptr<MemoryResource> source_;
  std::span<std::byte> whole_;
  mutable std::mutex mutex_;
  std::size_t used_ = 0;
};

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
