/// \file
/// Every update rule, for tests that run all of them, and what they do in double precision, written from their papers
/// and from what torch.optim documents.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "aliquot/kernels.h"
#include "aliquot/rules.h"

namespace aliquot::test {

/// Those that step each element by itself, with hyperparameters that all have an effect.
inline std::vector<Rule> elementwise_rules() {
  return {AdamW{.lr = 1e-2, .beta2 = 0.95, .weight_decay = 0.1},
          Adam{.lr = 1e-2, .beta2 = 0.95, .weight_decay = 0.1},
          Sgd{.lr = 0.1, .weight_decay = 0.1},
          MomentumSgd{.lr = 0.1, .momentum = 0.9, .dampening = 0.3, .weight_decay = 0.1},
          MomentumSgd{.lr = 0.1, .momentum = 0.8, .weight_decay = 0.1, .nesterov = true},
          Lion{.lr = 1e-2, .weight_decay = 0.1},
          Adagrad{.lr = 1e-2, .lr_decay = 0.1, .weight_decay = 0.1, .initial_accumulator_value = 0.2}};
}

inline constexpr Lamb lamb{.lr = 1e-2, .beta2 = 0.95, .weight_decay = 0.1};

inline std::vector<Rule> all_rules() {
  std::vector<Rule> rules = elementwise_rules();
  rules.push_back(lamb);
  return rules;
}

/// A step of whole parameters by any of them; the sums of a rule that is Normed.
inline NormSquares step_whole(const Rule& rule, const ParamStep& step, const Weights& weights,
                              std::span<const float> grad, const States& states) {
  if (!is_normed(rule)) {
    update(rule, step, weights, grad, states);
    return {};
  }
  const NormSquares squares = take(rule, step, weights, grad, states);
  move(rule, step, trust_ratio(squares.param, squares.direction), weights, states);
  return squares;
}

/// Name and number: Adagrad_6.
inline std::string name_of_rule(const testing::TestParamInfo<Rule>& info) {
  std::string name(name_of(info.param));
  std::ranges::replace(name, ' ', '_');
  return name + "_" + std::to_string(info.index);
}

struct ReferenceElement {
  double param;
  std::map<Role, double> states{};
  int steps = 0;

  void step(const Rule& rule, double grad) {
    ++steps;
    std::visit([&](const auto& one) { take_step(one, grad); }, rule);
  }
  double adam_change(const auto& rule, double grad) {
    double &m = states[Role::exp_avg], &v = states[Role::exp_avg_sq];
    m = rule.beta1 * m + (1 - rule.beta1) * grad;
    v = rule.beta2 * v + (1 - rule.beta2) * grad * grad;
    const double mean = m / (1 - std::pow(rule.beta1, steps)), square = v / (1 - std::pow(rule.beta2, steps));
    return rule.lr * mean / (std::sqrt(square) + rule.eps);
  }

 private:
  void take_step(const AdamW& rule, double grad) {
    param *= 1 - rule.lr * rule.weight_decay;
    param -= adam_change(rule, grad);
  }
  void take_step(const Adam& rule, double grad) { param -= adam_change(rule, grad + rule.weight_decay * param); }
  void take_step(const Sgd& rule, double grad) { param -= rule.lr * (grad + rule.weight_decay * param); }
  void take_step(const MomentumSgd& rule, double grad) {
    double& buffer = states[Role::momentum_buffer];
    grad += rule.weight_decay * param;
    buffer = steps == 1 ? grad : rule.momentum * buffer + (1 - rule.dampening) * grad;
    param -= rule.lr * (rule.nesterov ? grad + rule.momentum * buffer : buffer);
  }
  void take_step(const Lion& rule, double grad) {
    double& m = states[Role::exp_avg];
    const double direction = rule.beta1 * m + (1 - rule.beta1) * grad;
    const double sign_of_it = direction > 0 ? 1 : direction < 0 ? -1 : 0;
    param -= rule.lr * (sign_of_it + rule.weight_decay * param);
    m = rule.beta2 * m + (1 - rule.beta2) * grad;
  }
  void take_step(const Adagrad& rule, double grad) {
    double& sum = states[Role::sum];
    grad += rule.weight_decay * param;
    sum += grad * grad;
    const double lr = rule.lr / (1 + (steps - 1) * rule.lr_decay);
    param -= lr * grad / (std::sqrt(rule.initial_accumulator_value + sum) + rule.eps);
  }
  void take_step(const Lamb&, double) {}  // see step_param
};

/// A step of a whole parameter.
inline void step_param(std::vector<ReferenceElement>& param, const Rule& rule, const std::vector<double>& grads) {
  for (std::size_t i = 0; i < param.size(); ++i) param[i].step(rule, grads[i]);
  const auto* const by_norms = std::get_if<Lamb>(&rule);
  if (by_norms == nullptr) return;
  std::vector<double> directions;
  double param_squares = 0, direction_squares = 0;
  for (std::size_t i = 0; i < param.size(); ++i) {
    const double change = param[i].adam_change(*by_norms, grads[i]) / by_norms->lr;
    directions.push_back(change + by_norms->weight_decay * param[i].param);
    param_squares += param[i].param * param[i].param;
    direction_squares += directions[i] * directions[i];
  }
  const bool fine = param_squares > 0 && direction_squares > 0;
  const double ratio = fine ? std::sqrt(param_squares) / std::sqrt(direction_squares) : 1;
  for (std::size_t i = 0; i < param.size(); ++i) param[i].param -= by_norms->lr * ratio * directions[i];
}

}  // namespace aliquot::test
