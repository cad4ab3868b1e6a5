/// \file
/// Trains toy_units() on an engine. Gradients are made from the gathered parameters, so that a wrong gather shows.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "aliquot/engine.h"
#include "toy_units.h"
#include "worlds.h"

namespace aliquot::test {

inline constexpr AdamW toy_rule{.lr = 1e-2, .weight_decay = 0.1};
inline const std::vector<Rule> toy_groups = {toy_rule};
inline constexpr double toy_max_norm = 4;

/// root (around everything), embed, table, block, head, and block once more.
inline const std::vector<std::size_t> toy_walk = {0, 1, 2, 3, 5, 3};

inline std::vector<float> toy_initial(std::size_t unit, std::size_t param) {
  return numbers({unit, param, 12345}, toy_units()[unit].params[param].numel);
}

/// True if `param` gets a gradient on `rank`: some do on no rank, some on a few.
inline bool toy_has_gradient(std::size_t rank, std::size_t step, std::size_t unit, std::size_t param) {
  return toy_units()[unit].trainable && unit != 4 && (step + unit) % 5 != 0 && (rank + step + unit + param) % 3 != 0;
}

inline std::vector<float> toy_gradient(std::size_t rank, std::size_t step, std::size_t unit, std::size_t param,
                                       std::span<const float> values) {
  std::vector<float> gradient = numbers({rank, step, unit, param}, values.size());
  for (std::size_t i = 0; i < values.size(); ++i) gradient[i] += 0.125F * values[i];
  return gradient;
}

class ToyTraining {
 public:
  /// \param rank  whose gradients it makes, if not those of its rank of `communicator`
  ToyTraining(Communicator& communicator, EngineOptions options, DType dtype = DType::fp32,
              std::optional<int> rank = std::nullopt)
      : engine(toy_units(dtype), communicator, host_memory(), options),
        rank_(static_cast<std::size_t>(rank.value_or(communicator.rank()))) {
    Grouping grouping;
    engine.begin_write();
    for (std::size_t unit = 0; unit < engine.unit_count(); ++unit) {
      grouping.emplace_back(params(unit).size(), 0);
      for (std::size_t p = 0; p < params(unit).size(); ++p) engine.write(unit, p, toy_initial(unit, p).data());
    }
    engine.end_write();
    engine.set_groups(std::move(grouping));
  }

  StepResult step(std::size_t number) {
    forward();
    backward(number);
    const StepResult result = engine.step(toy_groups, toy_max_norm);
    engine.clear_gradients();
    return result;
  }

  void forward() {
    engine.pre_forward(toy_walk.front());
    engine.expect_backward(toy_walk.front());
    for (std::size_t i = 1; i < toy_walk.size(); ++i) {
      engine.pre_forward(toy_walk[i]);
      engine.expect_backward(toy_walk[i]);
      engine.post_forward(toy_walk[i]);
    }
    engine.post_forward(toy_walk.front());
    engine.finish_forward();
  }

  /// Walks back to the root. What autograd finds late, and what the reducer sends back, comes at the end.
  void backward(std::size_t step) {
    walk_back(step, toy_walk.size());
    finish_backward();
  }

  /// The first `visits` of a backward.
  void walk_back(std::size_t step, std::size_t visits) {
    full_.assign(engine.unit_count(), {});
    made_.clear();
    left_.clear();
    full_[0] = values_of(0, engine.pre_backward(0));
    for (std::size_t i = toy_walk.size(); i-- > toy_walk.size() - visits;) leave(toy_walk[i], step, first_visit(i));
  }
  void finish_backward() { engine.finish_backward(left_); }

  /// Every parameter's values, one after the other, without padding.
  std::vector<float> parameters() {
    std::vector<float> all;
    for (std::size_t unit = 0; unit < engine.unit_count(); ++unit) {
      std::vector<std::byte> bytes(engine.layout(unit).bytes());
      engine.read(unit, bytes.data());
      const std::vector<float> whole = values_of(unit, bytes.data());
      for (std::size_t p = 0; p < params(unit).size(); ++p) {
        const Range range = engine.layout(unit).param(p);
        const auto values = std::span(whole).subspan(range.begin, range.size());
        all.insert(all.end(), values.begin(), values.end());
      }
    }
    return all;
  }

  /// Changes a gradient before it is given away.
  std::function<void(std::size_t unit, std::size_t param, std::vector<float>& gradient)> tamper;

 private:
  const std::vector<ParamSpec>& params(std::size_t unit) const { return engine.layout(unit).unit().params; }

  std::vector<float> values_of(std::size_t unit, const void* full) const {
    std::vector<float> values(engine.layout(unit).numel());
    cast(full, engine.layout(unit).unit().dtype, values.data(), DType::fp32, values.size());
    return values;
  }

  static bool first_visit(std::size_t place) {
    for (std::size_t i = 0; i < place; ++i) {
      if (toy_walk[i] == toy_walk[place]) return false;
    }
    return true;
  }

  /// A unit that forward visited twice keeps its parameters until backward has seen both visits.
  void leave(std::size_t unit, std::size_t step, bool last) {
    if (const void* full = engine.pre_backward(unit)) full_[unit] = values_of(unit, full);
    if (!last) return;
    made_.push_back(gradients(unit, step));
    const bool late = (unit + step) % 4 == 0;
    if (late || !engine.layout(unit).unit().trainable) {
      engine.post_backward(unit, {});
      if (late && engine.layout(unit).unit().trainable) left_.emplace_back(unit, made_.back().pointers());
    } else if (!engine.post_backward(unit, made_.back().pointers())) {
      left_.emplace_back(unit, made_.back().pointers());
    }
  }

  UnitGradients gradients(std::size_t unit, std::size_t step) {
    UnitGradients made(engine.layout(unit).unit());
    for (std::size_t p = 0; p < params(unit).size(); ++p) {
      if (!toy_has_gradient(rank_, step, unit, p)) continue;
      std::vector<float> gradient = toy_gradient(
          rank_, step, unit, p, {full_[unit].data() + engine.layout(unit).param(p).begin, params(unit)[p].numel});
      if (tamper) tamper(unit, p, gradient);
      made.set(p, std::move(gradient));
    }
    return made;
  }

 public:
  Engine engine;

 private:
  std::size_t rank_;
  std::vector<std::vector<float>> full_;
  std::vector<UnitGradients> made_;
  Left left_;
};

}  // namespace aliquot::test
