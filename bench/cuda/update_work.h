/// \file
/// Update rules as work of a benchmark: one period is stepped on the host too, for the device's result to be checked.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "aliquot/device_kernels.h"
#include "aliquot/kernels.h"
#include "aliquot/quantization.h"
#include "aliquot/split_master.h"
#include "bench/cuda/device_work.h"
#include "tests/cpp/formats.h"

namespace aliquot::bench {

inline constexpr ParamStep tenth{.number = 10, .grad_scale = 0.5};
inline constexpr AdamW adamw{.lr = 1e-3, .beta2 = 0.95, .weight_decay = 0.1};
inline constexpr AdamW8bit adamw_8bit{{.lr = 1e-3, .beta2 = 0.95, .weight_decay = 0.1}};
inline constexpr Adam adam{.lr = 1e-3, .beta2 = 0.95, .weight_decay = 0.1};
inline constexpr Sgd sgd{.lr = 1e-3, .weight_decay = 0.1};
inline constexpr MomentumSgd momentum_sgd{.lr = 1e-3, .momentum = 0.9, .weight_decay = 0.1, .nesterov = true};
inline constexpr Lion lion{.lr = 1e-3, .weight_decay = 0.1};
inline constexpr Adagrad adagrad{.lr = 1e-3, .weight_decay = 0.1};
inline constexpr Lamb lamb{.lr = 1e-3, .beta2 = 0.95, .weight_decay = 0.1};

inline std::vector<float> squares(std::uint32_t seed) {
  std::vector<float> values = test::numbers(period, seed);
  for (float& value : values) value *= value;
  return values;
}

template <typename T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

/// The parameter's bytes and those of the other part of the master.
inline std::pair<std::vector<std::byte>, std::vector<std::byte>> stored(const std::vector<float>& masters, DType dtype,
                                                                        Master form) {
  if (form != Master::low16) return {test::encoded(masters, dtype), test::encoded(masters, DType::fp32)};
  std::vector<std::uint16_t> high, low;
  for (const float master : masters) {
    high.push_back(split_master(master).high);
    low.push_back(split_master(master).low);
  }
  return {bytes_of(high), bytes_of(low)};
}

/// What a rule keeps of the first period; roots are taken of it.
template <typename R>
std::vector<std::vector<float>> states_of_period() {
  std::vector<std::vector<float>> states;
  for (std::uint32_t i = 0; i < R::states.size(); ++i) states.push_back(squares(3 + i));
  return states;
}

/// A state of the first period in 8 bits.
struct QuantizedPeriod {
  std::vector<std::uint8_t> codes = std::vector<std::uint8_t>(period);
  std::vector<float> scales = std::vector<float>(block_count(period));

  QuantizedPeriod(Role role, const std::vector<float>& values) { quantize(role, values, codes.data(), scales.data()); }
  QuantizedState span() { return {codes, scales}; }
};

/// A unit of one parameter, and what its first period becomes on the host.
template <typename R>
struct Trained {
  DType dtype;
  Master form;
  DType grad_dtype;
  std::vector<float> masters = test::numbers(period, 1);
  std::vector<float> grads = test::numbers(period, 2, grad_dtype);
  std::vector<std::vector<float>> states = states_of_period<R>();
  std::vector<QuantizedPeriod> quantized{};         ///< these, where the rule is Quantized
  std::vector<std::shared_ptr<Repeated>> memory{};  ///< of the device
  cuda::UnitUpdate unit{};

  Trained(const R& rule, DType dtype, Master form, DType grad_dtype, std::size_t count, Stream stream)
      : dtype(dtype), form(form), grad_dtype(grad_dtype) {
    const auto [param_bytes, master_bytes] = stored(masters, dtype, form);
    unit.weights = {place(param_bytes, count, stream), dtype,
                    form == Master::none ? nullptr : place(master_bytes, count, stream), form};
    unit.grad = place(test::encoded(grads, grad_dtype), count, stream);
    unit.grad_dtype = grad_dtype;
    for (std::size_t i = 0; i < states.size(); ++i) {
      if constexpr (Quantized<R>) {
        const QuantizedPeriod& state = quantized.emplace_back(R::states[i], states[i]);
        unit.codes[i] = static_cast<std::uint8_t*>(place(bytes_of(state.codes), count, stream));
        unit.scales[i] = static_cast<float*>(place(bytes_of(state.scales), count, stream));
      } else {
        unit.states[i] = static_cast<float*>(place(bytes_of(states[i]), count, stream));
      }
    }
    unit.shard_numel = count;
    const std::vector<cuda::Chunk> plan = cuda::chunks_of(Layout({"unit", {{"param", count}}}, 1), {0, count});
    unit.chunks = table(plan, stream);
    unit.chunk_count = plan.size();
    unit.scalars = table<cuda::ParamScalars<R>>({{1, rule.scalars(tenth.number)}}, stream);
    unit.state = table<cuda::StepState>({{.grad_scale = tenth.grad_scale}}, stream);
  }

  Weights on_host() { return {.param = masters.data()}; }
  States states_on_host() {
    States spans;
    for (std::size_t i = 0; i < states.size(); ++i) spans[i] = states[i];
    return spans;
  }
  void update_on_host(const R& rule) {
    if constexpr (Quantized<R>) {
      QuantizedStates spans;
      for (std::size_t i = 0; i < states.size(); ++i) spans[i] = quantized[i].span();
      update(rule, tenth, on_host(), grads, spans);
    } else {
      update(rule, tenth, on_host(), grads, states_on_host());
    }
  }
  /// Whether the device has it too.
  bool is_right() const {
    const auto [param_bytes, master_bytes] = stored(masters, dtype, form);
    bool right = memory[0]->repeats(param_bytes) && (form == Master::none || memory[1]->repeats(master_bytes));
    std::size_t next = form == Master::none ? 2 : 3;
    const auto have = [&](const std::vector<std::byte>& bytes) { right = right && memory[next++]->repeats(bytes); };
    for (std::size_t i = 0; i < states.size(); ++i) {
      if constexpr (Quantized<R>) {
        have(bytes_of(quantized[i].codes));
        have(bytes_of(quantized[i].scales));
      } else {
        have(bytes_of(states[i]));
      }
    }
    return right;
  }
  /// Bytes of an element's master, read and written; one of its own is, and then the parameter is only written.
  double master_bytes() const {
    const double of_param = static_cast<double>(size_of(dtype));
    return form == Master::fp32 ? 8 + of_param : form == Master::low16 ? 8 : 2 * of_param;
  }
  double grad_bytes() const { return static_cast<double>(size_of(grad_dtype)); }
  double state_bytes() const {
    return (Quantized<R> ? 1 + 4.0 / quantization_block : 4.0) * static_cast<double>(states.size());
  }

 private:
  void* place(const std::vector<std::byte>& of_period, std::size_t count, Stream stream) {
    memory.push_back(std::make_shared<Repeated>(of_period, of_period.size() * (count / period), stream));
    return memory.back()->data();
  }
  template <typename T>
  const T* table(const std::vector<T>& values, Stream stream) {
    memory.push_back(array_of(values, stream));
    return memory.back()->template data<T>();
  }
};

template <const auto& rule, DType dtype, Master form, DType grad_dtype = DType::fp32>
Work update_work(std::size_t count, Stream stream) {
  using R = std::remove_cvref_t<decltype(rule)>;
  const auto trained = std::make_shared<Trained<R>>(rule, dtype, form, grad_dtype, count, stream);
  trained->update_on_host(rule);
  return {trained->master_bytes() + trained->grad_bytes() + 2 * trained->state_bytes(),
          [=] { cuda::update(rule, trained->unit, stream); }, [=] { return trained->is_right(); }};
}

/// The second pass reads masters and states again.
template <const auto& rule, DType dtype, Master form, DType grad_dtype = DType::fp32>
Work take_and_move_work(std::size_t count, Stream stream) {
  using R = std::remove_cvref_t<decltype(rule)>;
  const auto trained = std::make_shared<Trained<R>>(rule, dtype, form, grad_dtype, count, stream);
  const auto of_chunks = array_of(std::vector<NormSquares>(trained->unit.chunk_count), stream);
  const auto sums = array_of<NormSquares>({{}}, stream);
  const auto spans = array_of<cuda::ChunkSpan>({{0, static_cast<std::uint32_t>(trained->unit.chunk_count)}}, stream);
  const auto ratio = array_of<float>({0}, stream);
  const auto ratio_on_device = [=] {
    float value = 0;
    copy_async(&value, ratio->data(), sizeof value, stream);
    synchronize(stream);
    return value;
  };
  const NormSquares squares = take(rule, tenth, trained->on_host(), trained->grads, trained->states_on_host());
  return {trained->master_bytes() + 4 + trained->grad_bytes() + 3 * trained->state_bytes(),
          [=] {
            cuda::take(rule, trained->unit, of_chunks->data<NormSquares>(), stream);
            cuda::sum_norms(of_chunks->data<NormSquares>(), spans->data<cuda::ChunkSpan>(), 1,
                            sums->data<NormSquares>(), stream);
            cuda::trust_ratios(sums->data<NormSquares>(), 1, 1, ratio->data<float>(), stream);
            cuda::move(rule, trained->unit, ratio->data<float>(), stream);
          },
          [=] {
            const float found = ratio_on_device(), expected = trust_ratio(squares.param, squares.direction);
            move(rule, tenth, found, trained->on_host(), trained->states_on_host());
            return std::abs(found - expected) <= 1e-6F * expected && trained->is_right();
          }};
}

}  // namespace aliquot::bench
