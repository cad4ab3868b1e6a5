/// \file
/// The arithmetic of one fully connected layer. Knows nothing of Aliquot.
#pragma once

#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

namespace embed {

/// Row-major matrices: input [examples, inputs], weight [inputs, outputs], output [examples, outputs].
struct Layer {
  std::size_t inputs;
  std::size_t outputs;
  bool activated;                                 ///< by tanh
  std::vector<float> input{}, output{};           ///< of the last forward
  std::vector<float> weight_grad{}, bias_grad{};  ///< of the last backward

  void forward(std::vector<float> from, const float* weight, const float* bias) {
    input = std::move(from);
    output.resize(input.size() / inputs * outputs);
    for (std::size_t n = 0; n < output.size(); ++n) {
      const float* row = &input[n / outputs * inputs];
      float sum = bias[n % outputs];
      for (std::size_t i = 0; i < inputs; ++i) sum += row[i] * weight[i * outputs + n % outputs];
      output[n] = activated ? std::tanh(sum) : sum;
    }
  }

  /// Takes the gradient of the output, returns that of the input.
  std::vector<float> backward(const std::vector<float>& gradient, const float* weight) {
    weight_grad.assign(inputs * outputs, 0);
    bias_grad.assign(outputs, 0);
    std::vector<float> input_grad(input.size());
    for (std::size_t n = 0; n < output.size(); ++n) {
      const std::size_t row = n / outputs * inputs;
      const float before_tanh = activated ? gradient[n] * (1 - output[n] * output[n]) : gradient[n];
      bias_grad[n % outputs] += before_tanh;
      for (std::size_t i = 0; i < inputs; ++i) {
        weight_grad[i * outputs + n % outputs] += input[row + i] * before_tanh;
        input_grad[row + i] += weight[i * outputs + n % outputs] * before_tanh;
      }
    }
    return input_grad;
  }
};

}  // namespace embed
