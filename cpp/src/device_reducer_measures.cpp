#include "aliquot/device_kernels.h"
#include "device_reducer.h"

// What the gradients in the store are like, and scaling them.
namespace aliquot {

std::span<const std::byte> DeviceReducer::report(Stream stream) {
  if (stale_) measure(stream);
  stale_ = false;
  return {report_.data(), shape_.bytes()};
}

void DeviceReducer::measure(Stream stream) {
  const DeviceGuard guard(device_);
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    if (units_[unit].empty) continue;
    cuda::grad_statistics(store_.own_bytes(unit, Role::grad).data(), store_.gradient_dtype(unit),
                          store_.layout(unit).shard_numel(), statistics_of(unit), workspace_.data(), stream);
  }
}

void DeviceReducer::scale_all(float factor, Stream stream) {
  const DeviceGuard guard(device_);
  copy_async(factor_.data(), &factor, sizeof factor, stream);
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    if (!units_[unit].empty) scale_bytes(unit, store_.bytes_of(unit, Role::grad), stream);
  }
  stale_ = true;
}

void DeviceReducer::scale(std::size_t unit, std::size_t param, float factor, Stream stream) {
  if (units_.at(unit).empty) return;
  const DeviceGuard guard(device_);
  copy_async(factor_.data(), &factor, sizeof factor, stream);
  scale_bytes(unit, store_.held_bytes(unit, Role::grad, store_.layout(unit).param(param)), stream);
  stale_ = true;
}

void DeviceReducer::scale_bytes(std::size_t unit, std::span<std::byte> gradients, Stream stream) const {
  if (gradients.empty()) return;
  cuda::scale(gradients.data(), store_.gradient_dtype(unit), gradients.size() / store_.width(unit, Role::grad),
              reinterpret_cast<const float*>(factor_.data()), stream);
}

GradStatistics DeviceReducer::measure(std::size_t unit, Range range, Stream stream) {
  const DeviceGuard guard(device_);
  stale_ = true;  // the unit's place in the report is used
  cuda::grad_statistics(store_.held_bytes(unit, Role::grad, range).data(), store_.gradient_dtype(unit), range.size(),
                        statistics_of(unit), workspace_.data(), stream);
  cuda::DeviceStatistics measured;
  copy_async(&measured, statistics_of(unit), sizeof measured, stream);
  synchronize(stream);
  return {measured.square_sum, measured.non_finite};
}

}  // namespace aliquot
