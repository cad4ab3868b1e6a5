#include "cuda/device_mapping.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>

#include "aliquot/error.h"
#include "aliquot/streams.h"
#include "cuda/driver.h"
#include "cuda/launch.h"

namespace aliquot::cuda {
namespace {

constexpr auto file_descriptor = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;

CUmemLocation location_of(Device device) {
  CUmemLocation location{};
  location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  location.id = device.index;
  return location;
}

CUmemAllocationProp properties_on(Device device) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.requestedHandleTypes = file_descriptor;
  properties.location = location_of(device);
  return properties;
}

std::size_t rounded_up(std::size_t bytes, const CUmemAllocationProp& properties) {
  std::size_t granule = 0;
  check(driver().granularity(&granule, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED), "say how it cuts memory");
  return (bytes + granule - 1) / granule * granule;
}

[[noreturn]] void refuse(Device device, std::size_t bytes) {
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "say how much memory is free");
  throw OutOfMemory("memory of cuda:" + std::to_string(device.index) + " that peers can map: " + std::to_string(bytes) +
                    " bytes are wanted, " + std::to_string(free) + " of " + std::to_string(total) +
                    " are free; use more ranks, a higher stage, bf16, or a smaller budget for " +
                    "prefetching, and see what else runs on the device");
}

std::mutex created_mutex;
std::map<const std::byte*, std::weak_ptr<DeviceMapping>>& created() {
  // Never destroyed: memory may be given back at the very end of the process.
  static auto& by_address = *new std::map<const std::byte*, std::weak_ptr<DeviceMapping>>;
  return by_address;
}

bool has(CUdevice_attribute attribute, Device device) {
  int value = 0;
  return driver().attribute(&value, attribute, device.index) == CUDA_SUCCESS && value != 0;
}

}  // namespace

std::shared_ptr<DeviceMapping> DeviceMapping::create(Device device, std::size_t bytes) {
  const DeviceGuard guard(device);
  const CUmemAllocationProp properties = properties_on(device);
  const std::size_t mapped_bytes = rounded_up(bytes, properties);
  Handle handle{};
  const CUresult status = driver().create(&handle.value, mapped_bytes, &properties, 0);
  if (status == CUDA_ERROR_OUT_OF_MEMORY) refuse(device, mapped_bytes);
  check(status, "create memory that peers can map");
  const std::shared_ptr<DeviceMapping> made(new DeviceMapping(handle, device, bytes, mapped_bytes));
  const std::lock_guard lock(created_mutex);
  created()[made->memory().data()] = made;
  return made;
}

std::shared_ptr<DeviceMapping> DeviceMapping::import(const Descriptor& file, Device device, std::size_t bytes,
                                                     std::size_t mapped_bytes) {
  const DeviceGuard guard(device);
  Handle handle{};
  void* const number = reinterpret_cast<void*>(static_cast<std::intptr_t>(file.number()));
  check(driver().import_handle(&handle.value, number, file_descriptor), "import memory of a peer");
  return std::shared_ptr<DeviceMapping>(new DeviceMapping(handle, device, bytes, mapped_bytes));
}

std::shared_ptr<DeviceMapping> DeviceMapping::find(const std::byte* address) {
  const std::lock_guard lock(created_mutex);
  const auto found = created().find(address);
  return found == created().end() ? nullptr : found->second.lock();
}

DeviceMapping::DeviceMapping(Handle handle, Device device, std::size_t bytes, std::size_t mapped_bytes)
    : DeviceMapping(handle, bytes, mapped_bytes) {
  check(driver().reserve(&base_, mapped_bytes_, 0, 0, 0), "reserve addresses");
  check(driver().map(base_, mapped_bytes_, 0, handle_.value, 0), "map memory");
  mapped_ = true;
  grant(device);
}

// In whatever state the constructor left it. At the end of the process the driver refuses all of this, and has given
// the memory back.
DeviceMapping::~DeviceMapping() {
  for (const Device device : users_) {
    try {
      const DeviceGuard guard(device);
      cudaDeviceSynchronize();
    } catch (const Error&) {  // the runtime is gone
    }
  }
  {
    const std::lock_guard lock(created_mutex);
    const auto mine = created().find(memory().data());
    if (mine != created().end() && mine->second.expired()) created().erase(mine);
  }
  if (mapped_) driver().unmap(base_, mapped_bytes_);
  if (base_ != 0) driver().free_address(base_, mapped_bytes_);
  driver().release(handle_.value);
}

void DeviceMapping::grant(Device device) {
  const std::lock_guard lock(mutex_);
  if (std::ranges::find(users_, device) != users_.end()) return;
  check(cudaInitDevice(device.index, 0, 0), "start a device");
  CUmemAccessDesc access{};
  access.location = location_of(device);
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  check(driver().set_access(base_, mapped_bytes_, &access, 1), "let a device use memory");
  users_.push_back(device);
}

Descriptor DeviceMapping::exported() const {
  int file = -1;
  check(driver().export_handle(&file, handle_.value, file_descriptor, 0), "export memory");
  return Descriptor(file);
}

bool supports_exported_memory(Device device) noexcept {
  try {
    return has(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device) &&
           has(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, device);
  } catch (const Error&) {
    return false;
  }
}

}  // namespace aliquot::cuda
