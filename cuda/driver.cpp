#include "cuda/driver.h"

#include <string>

#include "cuda/launch.h"

namespace aliquot::cuda {
namespace {

constexpr unsigned version = 12000;  // whose forms of the functions are meant

template <typename Function>
void find(const char* name, Function& function) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const cudaError_t status = cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &result);
  if (status != cudaSuccess || found == nullptr) {
    cudaGetLastError();
    throw DeviceError(std::string("the CUDA driver has no ") + name + "; a newer one does");
  }
  function = reinterpret_cast<Function>(found);
}

Driver load() {
  Driver driver{};
  find("cuGetErrorString", driver.error_string);
  find("cuDeviceGetAttribute", driver.attribute);
  find("cuMemGetAllocationGranularity", driver.granularity);
  find("cuMemCreate", driver.create);
  find("cuMemRelease", driver.release);
  find("cuMemAddressReserve", driver.reserve);
  find("cuMemAddressFree", driver.free_address);
  find("cuMemMap", driver.map);
  find("cuMemUnmap", driver.unmap);
  find("cuMemSetAccess", driver.set_access);
  find("cuMemExportToShareableHandle", driver.export_handle);
  find("cuMemImportFromShareableHandle", driver.import_handle);
  return driver;
}

}  // namespace

const Driver& driver() {
  static const Driver loaded = load();  // an exception leaves it for the next call to try again
  return loaded;
}

void check(CUresult status, const char* what) {
  if (status == CUDA_SUCCESS) return;
  const char* text = nullptr;
  driver().error_string(status, &text);
  throw DeviceError(std::string("CUDA could not ") + what + ": " + (text != nullptr ? text : "an unknown error"));
}

}  // namespace aliquot::cuda
