#include "device_optimizer.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "gradient_report.h"
#include "to_device.h"

namespace aliquot {
namespace {

constexpr std::size_t under_way = 16;  ///< messages of a ring: how many steps the host may be ahead

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
  store_.hold_states(states_of(rule), memory, form_of_states(rule));
  place(grouping);
  shape_.units = units_.size();
  shape_.world_size = communicator.world_size();
  steps_of_param_ = Buffer(memory_, shape_.params * sizeof(std::int64_t));
  scalars_ = Buffer(memory_, shape_.params * scalars_size(rule));
  reports_ = Buffer(memory_, shape_.bytes() * static_cast<std::size_t>(shape_.world_size));
  state_ = Buffer(memory_, sizeof(cuda::StepState));
  loss_scale_ = to_device(std::vector{LossScale{}}, memory_);
  if (is_normed(rule)) ratios_ = DeviceTrustRatios(store_, communicator_, memory_);
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
    const std::vector<cuda::Chunk> chunks = stepped_chunks(store_, unit);
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

void DeviceOptimizer::decide(DeviceReducer& reducer, std::optional<double> max_norm, Stream stream) {
  const DeviceGuard guard(device_);
  communicator_.all_gather({"step", ""}, reducer.report(stream), reports_.data(), stream);
  cuda::finish_report(rule_, shape_, reports_.data(), groups_.data(),
                      reinterpret_cast<const int*>(group_of_param_.data()),
                      reinterpret_cast<std::int64_t*>(steps_of_param_.data()), max_norm.value_or(0), loss_scale(),
                      reinterpret_cast<cuda::StepState*>(state_.data()), scalars_.data(), stream);
  if (!is_normed(rule_)) return;
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    if (!store_.holds(unit, Role::grad)) continue;
    const TimedScope timed = time_update(unit, Hold::work, stream);
    cuda::take(rule_, update_of(unit), ratios_.of_chunks(unit), stream);
  }
  ratios_.add_up(communicator_, stream);
}

void DeviceOptimizer::update(std::size_t unit, Hold hold, Stream stream) {
  if (!store_.holds(unit, Role::grad)) return;
  const DeviceGuard guard(device_);
  const TimedScope timed = time_update(unit, hold, stream);
  if (is_normed(rule_)) {
    cuda::move(rule_, update_of(unit), ratios_.of(unit), stream);
  } else {
    cuda::update(rule_, update_of(unit), stream);
  }
}

TimedScope DeviceOptimizer::time_update(std::size_t unit, Hold hold, Stream stream) const {
  const std::size_t bytes = store_.stepped_range(unit).size() * sizeof(float);
  return {timeline_, Activity::step, hold, store_.layout(unit).unit().name, bytes, stream};
}

StepResult DeviceOptimizer::receive(Stream stream) {
  copy_async(received_.next(), state_.data(), sizeof(cuda::StepState), stream);
  received_.record(stream);
  const std::byte* latest = received_.latest();
  return latest == nullptr ? StepResult{} : result_of(*reinterpret_cast<const cuda::StepState*>(latest));
}

// Where states are sharded and parameters or gradients are not, the update is of this rank's part of them.
cuda::UnitUpdate DeviceOptimizer::update_of(std::size_t unit) const {
  const auto part = [&](Role role) {
    const bool sharded = store_.extent(Role::master) == Extent::shard;
    return (sharded ? store_.own_bytes(unit, role) : store_.bytes_of(unit, role)).data();
  };
  cuda::UnitUpdate update;
  update.weights.param = part(Role::param);
  update.weights.dtype = store_.layout(unit).unit().dtype;
  if (store_.holds(unit, Role::master)) {
    update.weights.master = part(Role::master);
    update.weights.form = store_.master_form() == MasterForm::fp32 ? Master::fp32 : Master::low16;
  }
  update.grad = part(Role::grad);
  update.grad_dtype = store_.gradient_dtype(unit);
  const std::span<const Role> roles = states_of(rule_);
  for (std::size_t i = 0; i < roles.size(); ++i) {
    if (is_quantized(rule_)) {
      update.codes[i] = reinterpret_cast<std::uint8_t*>(part(roles[i]));
      update.scales[i] = store_.scales(unit, roles[i]).data();
    } else {
      update.states[i] = reinterpret_cast<float*>(part(roles[i]));
    }
  }
  update.shard_numel = store_.layout(unit).shard_numel();
  update.chunks = reinterpret_cast<const cuda::Chunk*>(units_[unit].chunks.data());
  update.chunk_count = units_[unit].chunk_count;
  update.scalars = scalars_.data() + units_[unit].first_param * scalars_size(rule_);
  update.state = state();
  return update;
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
