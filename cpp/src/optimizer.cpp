#include "aliquot/optimizer.h"

#include <algorithm>
#include <string>
#include <utility>

#include "aliquot/kernels.h"

namespace aliquot {
namespace {

Weights weights_of(const ShardStore& store, std::size_t unit, Range range) {
  Weights weights{.param = store.held_bytes(unit, Role::param, range).data(), .dtype = store.layout(unit).unit().dtype};
  if (store.holds(unit, Role::master)) {
    weights.master = store.held_bytes(unit, Role::master, range).data();
    weights.form = store.master_form() == MasterForm::fp32 ? Master::fp32 : Master::low16;
  }
  return weights;
}

}  // namespace

AdamW::AdamW(ShardStore& store, MemoryResource& memory, Grouping grouping)
    : store_(store), grouping_(std::move(grouping)) {
  for (const std::vector<int>& params : grouping_) steps_.emplace_back(params.size(), 0);
  store_.hold_states(states_of_adamw, memory);
}

void require_groups(std::size_t given, std::size_t wanted) {
  if (given >= wanted) return;
  throw InvalidArgument("step: " + std::to_string(given) + " groups of hyperparameters for " + std::to_string(wanted) +
                        " groups of parameters");
}

std::size_t group_count(const Grouping& grouping) {
  std::size_t count = 0;
  for (const std::vector<int>& params : grouping) {
    for (const int group : params) count = std::max(count, group == no_group ? 0 : static_cast<std::size_t>(group) + 1);
  }
  return count;
}

void AdamW::step(std::span<const AdamWGroup> groups, const Presence& present, float grad_scale) {
  require_groups(groups.size(), group_count(grouping_));
  for (std::size_t unit = 0; unit < store_.unit_count(); ++unit) {
    if (store_.holds(unit, Role::exp_avg)) step_unit(unit, groups, grad_scale, present[unit]);
  }
}

void AdamW::step_unit(std::size_t unit, std::span<const AdamWGroup> groups, float grad_scale,
                      const std::vector<bool>& present) {
  const Layout& layout = store_.layout(unit);
  const Range held = store_.stepped_range(unit);
  const TimedScope timed(timeline_, Activity::step, Hold::work, layout.unit().name, held.size() * sizeof(float), {});
  const auto stepped = [&](std::size_t param) { return present[param] && grouping_[unit][param] != no_group; };
  for (std::size_t param = 0; param < present.size(); ++param) steps_[unit][param] += stepped(param) ? 1 : 0;
  for (const Segment& segment : layout.segments(held)) {
    if (!stepped(segment.param)) continue;
    const AdamWGroup& group = groups[static_cast<std::size_t>(grouping_[unit][segment.param])];
    const auto part = [&](Role role) { return store_.held_part(unit, role, segment.range); };
    adamw({.lr = group.lr,
           .beta1 = group.beta1,
           .beta2 = group.beta2,
           .eps = group.eps,
           .weight_decay = group.weight_decay,
           .step = steps_[unit][segment.param],
           .grad_scale = grad_scale},
          weights_of(store_, unit, segment.range), part(Role::grad), part(Role::exp_avg), part(Role::exp_avg_sq));
  }
}

float clip_factor(double norm, double max_norm) { return static_cast<float>(std::min(1.0, max_norm / (norm + 1e-6))); }

}  // namespace aliquot
