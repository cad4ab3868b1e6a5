/// \file
/// A multilayer perceptron whose parameters an aliquot::Engine holds, one unit per layer: the calls of its verbs.
#pragma once

#include <cmath>
#include <random>
#include <string>

#include "aliquot/engine.h"
#include "layer.h"

namespace embed {

class Mlp {
 public:
  /// Collective. `communicator` outlives the Mlp.
  Mlp(std::vector<Layer> layers, aliquot::Stage stage, aliquot::Communicator& communicator)
      : layers_(std::move(layers)),
        engine_(units_of(layers_), communicator, aliquot::host_memory(), {.stage = stage, .gatherer = {}}) {
    engine_.set_groups(aliquot::Grouping(layers_.size(), {0, 0}));
    initialize();
  }

  /// The last layer's output.
  std::vector<float> forward(std::vector<float> input) {
    for (std::size_t unit = 0; unit < layers_.size(); ++unit) {
      const auto* full = static_cast<const float*>(engine_.pre_forward(unit));
      layers_[unit].forward(std::move(input), full + offset(unit, 0), full + offset(unit, 1));
      engine_.expect_backward(unit);
      engine_.post_forward(unit);
      input = layers_[unit].output;
    }
    engine_.finish_forward();
    return input;
  }

  /// Takes the gradient of the last forward's output. On return those of all ranks are reduced.
  void backward(std::vector<float> gradient) {
    aliquot::Left left;
    for (std::size_t unit = layers_.size(); unit-- > 0;) {
      const auto* full = static_cast<const float*>(engine_.pre_backward(unit));
      gradient = layers_[unit].backward(gradient, full + offset(unit, 0));
      const aliquot::Gradients gradients{layers_[unit].weight_grad.data(), layers_[unit].bias_grad.data()};
      if (!engine_.post_backward(unit, gradients)) left.emplace_back(unit, gradients);
    }
    engine_.finish_backward(left);
  }

  void step(const aliquot::Rule& rule, double max_norm) {
    engine_.step({&rule, 1}, max_norm);
    engine_.clear_gradients();
  }

  const aliquot::Engine& engine() const { return engine_; }

 private:
  static std::vector<aliquot::UnitSpec> units_of(const std::vector<Layer>& layers) {
    std::vector<aliquot::UnitSpec> units;
    for (const Layer& layer : layers) {
      const std::string name = "layer" + std::to_string(units.size());
      units.push_back({name, {{name + ".weight", layer.inputs * layer.outputs}, {name + ".bias", layer.outputs}}});
    }
    return units;
  }

  /// Where a parameter lies in the full unit.
  std::size_t offset(std::size_t unit, std::size_t param) const { return engine_.layout(unit).param(param).begin; }

  /// Writes the same weights on every rank. Biases stay zero, as everything in the engine is at first.
  void initialize() {
    std::mt19937 random(1);
    engine_.begin_write();
    for (std::size_t unit = 0; unit < layers_.size(); ++unit) {
      std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(layers_[unit].inputs)));
      std::vector<float> weight(layers_[unit].inputs * layers_[unit].outputs);
      for (float& value : weight) value = normal(random);
      engine_.write(unit, 0, weight.data());
    }
    engine_.end_write();
  }

  std::vector<Layer> layers_;
  aliquot::Engine engine_;
};

}  // namespace embed
