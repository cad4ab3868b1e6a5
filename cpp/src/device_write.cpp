#include "device_write.h"

#include <memory>

#include "aliquot/device_kernels.h"
#include "aliquot/memory_resource.h"

namespace aliquot {
namespace {

/// What of `range` this rank holds of `role`, from `source`, which holds all of it.
void put(const ShardStore& store, std::size_t unit, Role role, Range range, const void* source, Stream stream) {
  const Range held = store.held_range(unit, role);
  const Range part = intersect(held, range);
  if (part.empty()) return;
  const std::size_t width = store.width(unit, role);
  copy_async(store.bytes_of(unit, role).data() + (part.begin - held.begin) * width,
             static_cast<const std::byte*>(source) + (part.begin - range.begin) * width, part.size() * width, stream);
}

}  // namespace

void write_on_device(const ShardStore& store, std::size_t unit, Range range, const float* values, Device device,
                     Stream stream) {
  const DeviceGuard guard(device);
  const DType dtype = store.layout(unit).unit().dtype;
  if (dtype == DType::fp32) {
    put(store, unit, Role::param, range, values, stream);
    synchronize(stream);
    return;
  }
  const std::unique_ptr<MemoryResource> memory = device_memory(device);
  const Buffer param(*memory, range.size() * size_of(dtype));
  const Buffer low(*memory, range.size() * sizeof(std::uint16_t));
  const bool split = dtype == DType::bf16 && store.master_form() == MasterForm::low16;
  if (split) {
    cuda::split_masters(values, param.data(), reinterpret_cast<std::uint16_t*>(low.data()), range.size(), stream);
  } else {
    cuda::cast(values, DType::fp32, param.data(), dtype, range.size(), stream);
  }
  put(store, unit, Role::param, range, param.data(), stream);
  if (store.holds(unit, Role::master)) {
    put(store, unit, Role::master, range, split ? static_cast<const void*>(low.data()) : values, stream);
  }
  synchronize(stream);
}

}  // namespace aliquot
