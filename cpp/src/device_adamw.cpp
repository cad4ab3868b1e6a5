#include "device_adamw.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "gradient_report.h"

namespace aliquot {
namespace {

constexpr std::size_t under_way = 16;  ///< messages of a ring: how many steps the host may be ahead

template <typename T>
Buffer to_device(const std::vector<T>& values, MemoryResource& memory) {
  Buffer buffer(memory, values.size() * sizeof(T));
  copy_async(buffer.data(), values.data(), buffer.bytes(), {});
  synchronize({});
  return buffer;
}

StepCounts counts_of(const cuda::StepState& state) { return {state.steps, state.skipped, state.skipped_in_a_row}; }

}  // namespace

DeviceAdamW::DeviceAdamW(ShardStore& store, Communicator& communicator, MemoryResource& memory,
                         const Grouping& grouping)
    : store_(store), communicator_(communicator), device_(memory.device()), memory_(memory),
      units_(store.unit_count()) {
  const DeviceGuard guard(device_);
  store_.hold_states(states_of_adamw, memory);
  place(grouping);
  shape_.units = units_.size();
  shape_.world_size = communicator.world_size();
  steps_of_param_ = Buffer(memory_, shape_.params * sizeof(std::int64_t));
  scalars_ = Buffer(memory_, shape_.params * sizeof(cuda::ParamScalars));
  reports_ = Buffer(memory_, shape_.bytes() * static_cast<std::size_t>(shape_.world_size));
  state_ = Buffer(memory_, sizeof(cuda::StepState));
  loss_scale_ = to_device(std::vector{LossScale{}}, memory_);
  received_ = HostRing(device_, sizeof(cuda::StepState), under_way);
  make_room_for_groups();
}

void DeviceAdamW::make_room_for_groups() {
  groups_ = Buffer(memory_, std::max<std::size_t>(group_count_, 1) * sizeof(AdamWGroup));
  sent_ = HostRing(device_, groups_.bytes(), under_way);
}

void DeviceAdamW::regroup(const Grouping& grouping) {
  const DeviceGuard guard(device_);
  received_.synchronize();  // then no step reads the tables any more
  place(grouping);
  make_room_for_groups();
}

void DeviceAdamW::place(const Grouping& grouping) {
  std::vector<int> group_of_param;
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    units_[unit].first_param = group_of_param.size();
    group_of_param.insert(group_of_param.end(), grouping.at(unit).begin(), grouping[unit].end());
    if (!store_.holds(unit, Role::exp_avg)) continue;
    const std::vector<cuda::Chunk> chunks = cuda::chunks_of(store_.layout(unit), store_.stepped_range(unit));
    units_[unit].chunk_count = chunks.size();
    units_[unit].chunks = to_device(chunks, memory_);
  }
  shape_.params = group_of_param.size();
  group_count_ = group_count(grouping);
  group_of_param_ = to_device(group_of_param, memory_);
}

void DeviceAdamW::send(std::span<const AdamWGroup> groups, Stream stream) {
  require_groups(groups.size(), group_count_);
  std::byte* message = sent_.next();
  std::memcpy(message, groups.data(), group_count_ * sizeof(AdamWGroup));
  copy_async(groups_.data(), message, group_count_ * sizeof(AdamWGroup), stream);
  sent_.record(stream);
}

void DeviceAdamW::step(DeviceReducer& reducer, std::optional<double> max_norm, Stream stream) {
  const DeviceGuard guard(device_);
  communicator_.all_gather({"step", ""}, reducer.report(stream), reports_.data(), stream);
  cuda::finish_report(shape_, reports_.data(), reinterpret_cast<const AdamWGroup*>(groups_.data()),
                      reinterpret_cast<const int*>(group_of_param_.data()),
                      reinterpret_cast<std::int64_t*>(steps_of_param_.data()), max_norm.value_or(0), loss_scale(),
                      reinterpret_cast<cuda::StepState*>(state_.data()),
                      reinterpret_cast<cuda::ParamScalars*>(scalars_.data()), stream);
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    if (store_.holds(unit, Role::exp_avg)) update(unit, stream);
  }
}

StepResult DeviceAdamW::receive(Stream stream) {
  copy_async(received_.next(), state_.data(), sizeof(cuda::StepState), stream);
  received_.record(stream);
  const std::byte* latest = received_.latest();
  return latest == nullptr ? StepResult{} : result_of(*reinterpret_cast<const cuda::StepState*>(latest));
}

void DeviceAdamW::update(std::size_t unit, Stream stream) {
  const Unit& state = units_[unit];
  const auto* scalars = reinterpret_cast<const cuda::ParamScalars*>(scalars_.data()) + state.first_param;
  const std::size_t bytes = store_.stepped_range(unit).size() * sizeof(float);
  const TimedScope timed(timeline_, Activity::step, Hold::work, store_.layout(unit).unit().name, bytes, stream);
  cuda::adamw(arrays(unit), reinterpret_cast<const cuda::Chunk*>(state.chunks.data()), state.chunk_count, scalars,
              this->state(), stream);
}

// Where states are sharded and parameters or gradients are not, the update is of this rank's part of them.
cuda::AdamWArrays DeviceAdamW::arrays(std::size_t unit) const {
  const auto part = [&](Role role) {
    const bool sharded = store_.extent(Role::master) == Extent::shard;
    return (sharded ? store_.own_bytes(unit, role) : store_.bytes_of(unit, role)).data();
  };
  cuda::AdamWArrays arrays;
  arrays.param = part(Role::param);
  arrays.dtype = store_.layout(unit).unit().dtype;
  if (store_.holds(unit, Role::master)) {
    arrays.master = part(Role::master);
    arrays.form = store_.master_form() == MasterForm::fp32 ? cuda::Master::fp32 : cuda::Master::low16;
  }
  arrays.grad = part(Role::grad);
  arrays.grad_dtype = store_.gradient_dtype(unit);
  arrays.exp_avg = reinterpret_cast<float*>(part(Role::exp_avg));
  arrays.exp_avg_sq = reinterpret_cast<float*>(part(Role::exp_avg_sq));
  return arrays;
}

StepResult DeviceAdamW::result_of(const cuda::StepState& state) const {
  StepResult result{state.norm, state.skip != 0, {}, counts_of(state)};
  if (result.skipped) {
    const Layout& layout = store_.layout(state.bad_unit);
    result.first_bad = param_name_at(layout, layout.shard(static_cast<int>(state.bad_rank)).begin + state.bad_element);
  }
  return result;
}

StepCounts DeviceAdamW::counts() const {
  received_.synchronize();
  const std::byte* latest = received_.latest();
  return latest == nullptr ? StepCounts{} : counts_of(*reinterpret_cast<const cuda::StepState*>(latest));
}

}  // namespace aliquot
