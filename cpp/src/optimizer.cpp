#include "aliquot/optimizer.h"

#include <algorithm>
#include <string>
#include <utility>
#include <variant>

#include "aliquot/kernels.h"
#include "trust_ratios.h"

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

using AnyStates = std::variant<States, QuantizedStates>;

States fp32_states(const ShardStore& store, std::size_t unit, std::span<const Role> roles, const Segment& segment) {
  States states;
  for (std::size_t i = 0; i < roles.size(); ++i) states[i] = store.held_part(unit, roles[i], segment.range);
  return states;
}

QuantizedStates quantized_states(const ShardStore& store, std::size_t unit, std::span<const Role> roles,
                                 const Segment& segment) {
  QuantizedStates states;
  for (std::size_t i = 0; i < roles.size(); ++i) {
    const std::span<std::byte> codes = store.held_bytes(unit, roles[i], segment.range);
    states[i] = {{reinterpret_cast<std::uint8_t*>(codes.data()), codes.size()}, store.scales(unit, roles[i], segment)};
  }
  return states;
}

AnyStates states_in(const ShardStore& store, std::size_t unit, std::span<const Role> roles, const Segment& segment) {
  if (store.state_form() == StateForm::quantized) return quantized_states(store, unit, roles, segment);
  return fp32_states(store, unit, roles, segment);
}

}  // namespace

/// A part of a parameter that this rank steps: what lies in the shard of `owner`.
struct Optimizer::Piece {
  int owner;
  std::size_t unit;
  std::size_t param;
  const Rule& rule;
  std::int64_t step;
  Weights weights;
  std::span<const float> grad;
  AnyStates states;
};

Optimizer::Optimizer(ShardStore& store, Communicator& communicator, MemoryResource& memory, Grouping grouping,
                     const Rule& rule)
    : store_(store), communicator_(communicator), rule_(rule), grouping_(std::move(grouping)) {
  for (const std::vector<int>& params : grouping_) steps_.emplace_back(params.size(), 0);
  store_.hold_states(states_of(rule), memory, form_of_states(rule));
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

StateForm form_of_states(const Rule& rule) { return is_quantized(rule) ? StateForm::quantized : StateForm::fp32; }

std::size_t group_count(const Grouping& grouping) {
  std::size_t count = 0;
  for (const std::vector<int>& params : grouping) {
    for (const int group : params) count = std::max(count, group == no_group ? 0 : static_cast<std::size_t>(group) + 1);
  }
  return count;
}

void Optimizer::step(std::span<const Rule> rules, const Presence& present, float grad_scale) {
  require_rules(rules, group_count(grouping_), rule_);
  count_steps(present);
  if (!is_normed(rule_)) {
    return for_pieces(rules, present, [&](const Piece& piece) {
      const ParamStep step{piece.step, grad_scale};
      std::visit([&](const auto& states) { update(piece.rule, step, piece.weights, piece.grad, states); },
                 piece.states);
    });
  }
  TrustRatios ratios(store_, communicator_);
  for_pieces(rules, present, [&](const Piece& piece) {
    ratios.part(piece.owner, piece.unit, piece.param) =
        take(piece.rule, {piece.step, grad_scale}, piece.weights, piece.grad, std::get<States>(piece.states));
  });
  ratios.exchange();
  for_pieces(rules, present, [&](const Piece& piece) {
    const float ratio = ratios.of(piece.unit, piece.param);
    move(piece.rule, {piece.step, grad_scale}, ratio, piece.weights, std::get<States>(piece.states));
  });
}

bool Optimizer::steps_param(std::size_t unit, std::size_t param, const Presence& present) const {
  return store_.holds(unit, Role::grad) && present[unit][param] && grouping_[unit][param] != no_group;
}

void Optimizer::count_steps(const Presence& present) {
  for (std::size_t unit = 0; unit < steps_.size(); ++unit) {
    for (std::size_t param = 0; param < steps_[unit].size(); ++param) {
      steps_[unit][param] += steps_param(unit, param, present) ? 1 : 0;
    }
  }
}

void Optimizer::for_pieces(std::span<const Rule> rules, const Presence& present, const Visit& visit) const {
  for (std::size_t unit = 0; unit < store_.unit_count(); ++unit) {
    if (!store_.holds(unit, Role::grad)) continue;
    const std::size_t bytes = store_.stepped_range(unit).size() * sizeof(float);
    const TimedScope timed(timeline_, Activity::step, Hold::work, store_.layout(unit).unit().name, bytes, {});
    for (const int owner : store_.stepped_shards()) visit_shard(owner, unit, rules, present, visit);
  }
}

void Optimizer::visit_shard(int owner, std::size_t unit, std::span<const Rule> rules, const Presence& present,
                            const Visit& visit) const {
  for (const Segment& segment : store_.layout(unit).segments(store_.layout(unit).shard(owner))) {
    const std::size_t param = segment.param;
    if (!steps_param(unit, param, present)) continue;
    const Rule& rule = rules[static_cast<std::size_t>(grouping_[unit][param])];
    visit(Piece{owner, unit, param, rule, steps_[unit][param], weights_of(store_, unit, segment.range),
                store_.held_part(unit, Role::grad, segment.range), states_in(store_, unit, states_of(rule_), segment)});
  }
}

float clip_factor(double norm, double max_norm) { return static_cast<float>(std::min(1.0, max_norm / (norm + 1e-6))); }

}  // namespace aliquot
