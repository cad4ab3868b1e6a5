/// \file
/// Physical memory of a device, at an address of this process, which other processes may map too.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "aliquot/device.h"
#include "descriptors.h"

namespace aliquot::cuda {

/// The memory lives as long as anybody maps it, in whichever process: one whose creator was killed can still be read.
class DeviceMapping {
 public:
  /// Memory of `device`, not initialized. \throws OutOfMemory; DeviceError
  static std::shared_ptr<DeviceMapping> create(Device device, std::size_t bytes);
  /// What another process exported, for use by `device`. \param mapped_bytes  of the original \throws DeviceError
  static std::shared_ptr<DeviceMapping> import(const Descriptor& file, Device device, std::size_t bytes,
                                               std::size_t mapped_bytes);
  /// What this process created at `address`; null where nothing is, or begins elsewhere.
  static std::shared_ptr<DeviceMapping> find(const std::byte* address);

  DeviceMapping(const DeviceMapping&) = delete;
  DeviceMapping& operator=(const DeviceMapping&) = delete;
  /// Waits for all work of the devices that use the memory.
  ~DeviceMapping();

  /// As many bytes as were asked for.
  std::span<std::byte> memory() const { return {reinterpret_cast<std::byte*>(base_), bytes_}; }
  std::size_t mapped_bytes() const { return mapped_bytes_; }
  /// Lets `device`, too, use the memory at this address. \throws DeviceError
  void grant(Device device);
  /// \throws DeviceError
  Descriptor exported() const;

 private:
  struct Handle {
    CUmemGenericAllocationHandle value;
  };
  DeviceMapping(Handle handle, std::size_t bytes, std::size_t mapped_bytes)
      : handle_(handle), bytes_(bytes), mapped_bytes_(mapped_bytes) {}
  /// Owns `handle` from the beginning, also if it throws.
  DeviceMapping(Handle handle, Device device, std::size_t bytes, std::size_t mapped_bytes);

  Handle handle_;
  std::size_t bytes_;
  std::size_t mapped_bytes_;
  CUdeviceptr base_ = 0;
  bool mapped_ = false;
  std::mutex mutex_;
  std::vector<Device> users_;
};

/// Whether `device` can create and import such memory. Never throws for what the driver lacks.
bool supports_exported_memory(Device device) noexcept;

}  // namespace aliquot::cuda
