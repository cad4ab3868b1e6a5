/// \file
/// The functions of the CUDA driver that the runtime has no word for. Found when they are first needed, so that nothing
/// links to the driver.
#pragma once

#include <cuda.h>

#include <cstddef>

namespace aliquot::cuda {

struct Driver {
  decltype(&cuGetErrorString) error_string;
  decltype(&cuDeviceGetAttribute) attribute;
  decltype(&cuMemGetAllocationGranularity) granularity;
  decltype(&cuMemCreate) create;
  decltype(&cuMemRelease) release;
  decltype(&cuMemAddressReserve) reserve;
  decltype(&cuMemAddressFree) free_address;
  decltype(&cuMemMap) map;
  decltype(&cuMemUnmap) unmap;
  decltype(&cuMemSetAccess) set_access;
  decltype(&cuMemExportToShareableHandle) export_handle;
  decltype(&cuMemImportFromShareableHandle) import_handle;
};

/// \throws DeviceError if the driver lacks one
const Driver& driver();

/// \throws DeviceError unless `status` is CUDA_SUCCESS. `what` completes "CUDA could not ...".
void check(CUresult status, const char* what);

}  // namespace aliquot::cuda
