/// \file
/// Devices and streams, without the types of any device runtime.
#pragma once

namespace aliquot {

/// Where memory lies and work runs.
struct Device {
  enum class Type { cpu, cuda };
  Type type = Type::cpu;
  int index = 0;

  friend bool operator==(const Device&, const Device&) = default;
};

/// An execution queue of a device, by its native handle (cudaStream_t). On a CPU there is one, the caller: work is
/// done when the call returns and the handle is null.
struct Stream {
  void* handle = nullptr;
};

/// True where this build holds the CUDA back end. Touches no device.
bool built_with_cuda() noexcept;

/// How many CUDA devices this process can use; 0 in a CPU build, without a driver, or without a device.
/// The first call starts the driver.
int cuda_device_count() noexcept;

}  // namespace aliquot
