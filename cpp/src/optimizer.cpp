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

Optimizer::Optimizer(ShardStore& store, MemoryResource& memory, Grouping grouping, const Rule& rule)
    : store_(store), rule_(rule), grouping_(std::move(grouping)) {
  for (const std::vector<int>& params : grouping_) steps_.emplace_back(params.size(), 0);
  store_.hold_states(states_of(rule), memory);
}

void require_rules(std::span<const Rule> rules, std::size_t wanted, const Rule& made) {
  if (rules.size() < wanted) {
    throw InvalidArgument("step: " + std::to_string(rules.size()) + " groups of hyperparameters for " +
                          std::to_string(wanted) + " groups of parameters");
  }
  for (const Rule& rule : rules) {
    if (rule.index() == made.index()) continue;
    throw InvalidArgument("step: the optimizer was made for " + std::string(name_of(made)) + ", and a group is of " +
                          std::string(name_of(rule)) + ", which keeps other states");
  }
}

std::size_t group_count(const Grouping& grouping) {
  std::size_t count = 0;
  for (const std::vector<int>& params : grouping) {
    for (const int group : params) count = std::max(count, group == no_group ? 0 : static_cast<std::size_t>(group) + 1);
  }
  return count;
}

void Optimizer::step(std::span<const Rule> rules, const Presence& present, float grad_scale) {
  require_rules(rules, group_count(grouping_), rule_);
  for (std::size_t unit = 0; unit < store_.unit_count(); ++unit) {
    if (store_.holds(unit, Role::grad)) step_unit(unit, rules, grad_scale, present[unit]);
  }
}

void Optimizer::step_unit(std::size_t unit, std::span<const Rule> rules, float grad_scale,
                          const std::vector<bool>& present) {
  const Layout& layout = store_.layout(unit);
  const Range held = store_.stepped_range(unit);
  const TimedScope timed(timeline_, Activity::step, Hold::work, layout.unit().name, held.size() * sizeof(float), {});
  const auto stepped = [&](std::size_t param) { return present[param] && grouping_[unit][param] != no_group; };
  for (std::size_t param = 0; param < present.size(); ++param) steps_[unit][param] += stepped(param) ? 1 : 0;
  for (const Segment& segment : layout.segments(held)) {
    if (!stepped(segment.param)) continue;
    step_segment(unit, segment, rules[static_cast<std::size_t>(grouping_[unit][segment.param])], grad_scale);
  }
}

void Optimizer::step_segment(std::size_t unit, const Segment& segment, const Rule& rule, float grad_scale) const {
  States states;
  const std::span<const Role> roles = states_of(rule);
  for (std::size_t i = 0; i < roles.size(); ++i) states[i] = store_.held_part(unit, roles[i], segment.range);
  update(rule, {steps_[unit][segment.param], grad_scale}, weights_of(store_, unit, segment.range),
         store_.held_part(unit, Role::grad, segment.range), states);
}

float clip_factor(double norm, double max_norm) { return static_cast<float>(std::min(1.0, max_norm / (norm + 1e-6))); }

}  // namespace aliquot
