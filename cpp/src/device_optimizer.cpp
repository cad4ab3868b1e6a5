#include "device_optimizer.h"

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

std::size_t group_size(const Rule& rule) {
  return std::visit([](const auto& one) { return sizeof one; }, rule);
}

std::size_t scalars_size(const Rule& rule) {
  return std::visit([]<typename R>(const R&) { return sizeof(cuda::ParamScalars<R>); }, rule);
}

StepCounts counts_of(const cuda::StepState& state) { return {state.steps, state.skipped, state.skipped_in_a_row}; }

}  // namespace

DeviceOptimizer::DeviceOptimizer(ShardStore& store, Communicator& communicator, MemoryResource& memory,
                                 const Grouping& grouping, const Rule& rule)
    : store_(store), communicator_(communicator), rule_(rule), device_(memory.device()), memory_(memory),
      units_(store.unit_count()) {
  const DeviceGuard guard(device_);
  store_.hold_states(states_of(rule), memory);
  place(grouping);
  shape_.units = units_.size();
  shape_.world_size = communicator.world_size();
  steps_of_param_ = Buffer(memory_, shape_.params * sizeof(std::int64_t));
  scalars_ = Buffer(memory_, shape_.params * scalars_size(rule));
  reports_ = Buffer(memory_, shape_.bytes() * static_cast<std::size_t>(shape_.world_size));
  state_ = Buffer(memory_, sizeof(cuda::StepState));
  loss_scale_ = to_device(std::vector{LossScale{}}, memory_);
  received_ = HostRing(device_, sizeof(cuda::StepState), under_way);
  make_room_for_groups();
}

void DeviceOptimizer::make_room_for_groups() {
  groups_ = Buffer(memory_, std::max<std::size_t>(group_count_, 1) * group_size(rule_));
  sent_ = HostRing(device_, groups_.bytes(), under_way);
}

void DeviceOptimizer::regroup(const Grouping& grouping) {
  const DeviceGuard guard(device_);
  received_.synchronize();  // then no step reads the tables any more
  place(grouping);
  make_room_for_groups();
}

void DeviceOptimizer::place(const Grouping& grouping) {
  std::vector<int> group_of_param;
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    units_[unit].first_param = group_of_param.size();
    group_of_param.insert(group_of_param.end(), grouping.at(unit).begin(), grouping[unit].end());
    if (!store_.holds(unit, Role::grad)) continue;
    const std::vector<cuda::Chunk> chunks = cuda::chunks_of(store_.layout(unit), store_.stepped_range(unit));
    units_[unit].chunk_count = chunks.size();
    units_[unit].chunks = to_device(chunks, memory_);
  }
  shape_.params = group_of_param.size();
  group_count_ = group_count(grouping);
  group_of_param_ = to_device(group_of_param, memory_);
}

void DeviceOptimizer::send(std::span<const Rule> rules, Stream stream) {
  require_rules(rules, group_count_, rule_);
  std::byte* message = sent_.next();
  for (std::size_t group = 0; group < group_count_; ++group) {
    std::visit([&](const auto& one) { std::memcpy(message + group * sizeof one, &one, sizeof one); }, rules[group]);
  }
  copy_async(groups_.data(), message, group_count_ * group_size(rule_), stream);
  sent_.record(stream);
}

void DeviceOptimizer::step(DeviceReducer& reducer, std::optional<double> max_norm, Stream stream) {
  const DeviceGuard guard(device_);
  communicator_.all_gather({"step", ""}, reducer.report(stream), reports_.data(), stream);
  cuda::finish_report(rule_, shape_, reports_.data(), groups_.data(),
                      reinterpret_cast<const int*>(group_of_param_.data()),
                      reinterpret_cast<std::int64_t*>(steps_of_param_.data()), max_norm.value_or(0), loss_scale(),
                      reinterpret_cast<cuda::StepState*>(state_.data()), scalars_.data(), stream);
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    if (store_.holds(unit, Role::grad)) update(unit, stream);
  }
}

StepResult DeviceOptimizer::receive(Stream stream) {
  copy_async(received_.next(), state_.data(), sizeof(cuda::StepState), stream);
  received_.record(stream);
  const std::byte* latest = received_.latest();
  return latest == nullptr ? StepResult{} : result_of(*reinterpret_cast<const cuda::StepState*>(latest));
}

void DeviceOptimizer::update(std::size_t unit, Stream stream) {
  const Unit& state = units_[unit];
  const std::byte* scalars = scalars_.data() + state.first_param * scalars_size(rule_);
  const std::size_t bytes = store_.stepped_range(unit).size() * sizeof(float);
  const TimedScope timed(timeline_, Activity::step, Hold::work, store_.layout(unit).unit().name, bytes, stream);
  cuda::update(rule_, arrays(unit), reinterpret_cast<const cuda::Chunk*>(state.chunks.data()), state.chunk_count,
               scalars, this->state(), stream);
}

// Where states are sharded and parameters or gradients are not, the update is of this rank's part of them.
cuda::UpdateArrays DeviceOptimizer::arrays(std::size_t unit) const {
  const auto part = [&](Role role) {
    const bool sharded = store_.extent(Role::master) == Extent::shard;
    return (sharded ? store_.own_bytes(unit, role) : store_.bytes_of(unit, role)).data();
  };
  cuda::UpdateArrays arrays;
  arrays.weights.param = part(Role::param);
  arrays.weights.dtype = store_.layout(unit).unit().dtype;
  if (store_.holds(unit, Role::master)) {
    arrays.weights.master = part(Role::master);
    arrays.weights.form = store_.master_form() == MasterForm::fp32 ? Master::fp32 : Master::low16;
  }
  arrays.grad = part(Role::grad);
  arrays.grad_dtype = store_.gradient_dtype(unit);
  const std::span<const Role> roles = states_of(rule_);
  for (std::size_t i = 0; i < roles.size(); ++i) arrays.states[i] = reinterpret_cast<float*>(part(roles[i]));
  return arrays;
}

StepResult DeviceOptimizer::result_of(const cuda::StepState& state) const {
  StepResult result{state.norm, state.skip != 0, {}, counts_of(state)};
  if (result.skipped) {
    const Layout& layout = store_.layout(state.bad_unit);
    result.first_bad = param_name_at(layout, layout.shard(static_cast<int>(state.bad_rank)).begin + state.bad_element);
  }
  return result;
}

StepCounts DeviceOptimizer::counts() const {
  received_.synchronize();
  const std::byte* latest = received_.latest();
  return latest == nullptr ? StepCounts{} : counts_of(*reinterpret_cast<const cuda::StepState*>(latest));
}

void DeviceOptimizer::set_counts(const StepCounts& counts, Stream stream) {
  const DeviceGuard guard(device_);
  cuda::StepState state;
  copy_async(&state, state_.data(), sizeof state, stream);
  synchronize(stream);
  state.steps = counts.steps;
  state.skipped = counts.skipped;
  state.skipped_in_a_row = counts.skipped_in_a_row;
  std::byte* message = received_.next();
  std::memcpy(message, &state, sizeof state);
  copy_async(state_.data(), message, sizeof state, stream);
  received_.record(stream);
}

ParamSteps DeviceOptimizer::steps(Stream stream) const {
  const DeviceGuard guard(device_);
  std::vector<std::int64_t> flat(shape_.params);
  copy_async(flat.data(), steps_of_param_.data(), steps_of_param_.bytes(), stream);
  synchronize(stream);
  ParamSteps steps;
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    const auto first = flat.begin() + static_cast<std::ptrdiff_t>(units_[unit].first_param);
    steps.emplace_back(first, first + static_cast<std::ptrdiff_t>(store_.layout(unit).unit().params.size()));
  }
  return steps;
}

void DeviceOptimizer::set_steps(const ParamSteps& steps, Stream stream) {
  const DeviceGuard guard(device_);
  std::vector<std::int64_t> flat;
  for (const std::vector<std::int64_t>& of_unit : steps) flat.insert(flat.end(), of_unit.begin(), of_unit.end());
  copy_async(steps_of_param_.data(), flat.data(), steps_of_param_.bytes(), stream);
  synchronize(stream);
}

}  // namespace aliquot
