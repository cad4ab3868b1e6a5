#include "aliquot/kernels.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "aliquot/error.h"
#include "aliquot/parallel.h"
#include "aliquot/quantization.h"
#include "cpu/kernel_table.h"

namespace aliquot {
namespace {

using cpu::block_size;

/// Elements from which on stores that bypass the cache were measured to be faster.
constexpr std::size_t past_cache_size = std::size_t{1} << 20;
/// Elements that one thread takes at a time: some 20 us of work, more than it costs to wake another thread.
constexpr std::size_t grain_size = 8 * block_size;
static_assert(grain_size % quantization_block == 0);

/// The sum over the blocks of [0, count) of part(begin, end), added in the blocks' order.
template <typename Sum, typename Part>
Sum sum_over_blocks(std::size_t count, const Part& part) {
  std::vector<Sum> blocks((count + block_size - 1) / block_size);
  parallel_for(count, grain_size, [&](std::size_t begin, std::size_t end) {
    for (; begin < end; begin += block_size) {
      blocks[begin / block_size] = part(begin, std::min(end, begin + block_size));
    }
  });
  Sum sum;
  for (const Sum& block : blocks) sum += block;
  return sum;
}

auto kernel_of_reduce(std::span<const float> result, Accumulate accumulate) {
  const cpu::KernelTable& table = cpu::current_table();
  if (accumulate == Accumulate::yes) return table.reduce_add;
  const bool aligned = reinterpret_cast<std::uintptr_t>(result.data()) % 64 == 0;
  return aligned && result.size() >= past_cache_size ? table.reduce_assign_past_cache : table.reduce_assign;
}

template <typename Kernel>
Kernel kernel_for(const cpu::Forms<Kernel>& forms, const Weights& weights) {
  const bool bf16 = weights.dtype == DType::bf16;
  if (weights.form == Master::none && weights.dtype == DType::fp32) return forms.fp32;
  if (weights.form == Master::low16 && bf16) return forms.split;
  if (weights.form == Master::fp32 && weights.dtype != DType::fp32) return bf16 ? forms.bf16 : forms.fp16;
  throw InvalidArgument("update: no master of this form goes with parameters of " +
                        std::string(name_of(weights.dtype)) +
                        "; fp32 parameters are their own master, bf16 has fp32 or low16, fp16 has fp32");
}

void require_same_size(std::size_t size, std::size_t grad_size, std::string_view name) {
  if (size == grad_size) return;
  throw InvalidArgument("update: " + std::string(name) + " has " + std::to_string(size) + " elements, grad " +
                        std::to_string(grad_size) + "; all must be equal");
}

/// From element `begin` on.
cpu::WeightArrays arrays_from(std::size_t begin, const Weights& weights, const float* grad) {
  const auto at = [begin](void* array, std::size_t width) -> void* {
    return array == nullptr ? nullptr : static_cast<std::byte*>(array) + begin * width;
  };
  const std::size_t master_size = weights.form == Master::low16 ? sizeof(std::uint16_t) : sizeof(float);
  return {at(weights.param, size_of(weights.dtype)), at(weights.master, master_size), grad + begin};
}

cpu::UpdateArrays arrays_from(std::size_t begin, const Weights& weights, const float* grad, const States& states) {
  cpu::UpdateArrays arrays{arrays_from(begin, weights, grad), {}};
  for (std::size_t i = 0; i < states.size(); ++i) {
    arrays.states[i] = states[i].empty() ? nullptr : states[i].data() + begin;
  }
  return arrays;
}

/// Where a block begins.
cpu::QuantizedArrays arrays_from(std::size_t begin, const Weights& weights, const float* grad,
                                 const QuantizedStates& states) {
  cpu::QuantizedArrays arrays{arrays_from(begin, weights, grad), {}, {}};
  for (std::size_t i = 0; i < states.size(); ++i) {
    if (states[i].codes.empty()) continue;
    arrays.codes[i] = states[i].codes.data() + begin;
    arrays.scales[i] = states[i].scales.data() + begin / quantization_block;
  }
  return arrays;
}

enum class Kind { elementwise, quantized, normed };

template <typename R>
constexpr Kind kind_of() {
  return Normed<R> ? Kind::normed : Quantized<R> ? Kind::quantized : Kind::elementwise;
}

constexpr const char* trait_of(Kind kind) {
  return kind == Kind::normed      ? " takes two passes"
         : kind == Kind::quantized ? " takes states of 8 bits"
                                   : " takes one pass, and states of fp32";
}

/// use(kernels, scalars) with those of `rule`, which must be of this kind.
template <Kind kind, typename Use>
void with_rule(const Rule& rule, const ParamStep& step, const Use& use) {
  if (step.number < 1) {
    throw InvalidArgument("update: the step is number " + std::to_string(step.number) + "; steps count from 1");
  }
  std::visit(
      [&]<typename R>(const R& one) {
        if constexpr (kind_of<R>() == kind) {
          use(std::get<cpu::Updates<R>>(cpu::current_table().updates.by_rule), one.scalars(step.number));
        } else {
          throw InvalidArgument("update: " + std::string(R::name) + trait_of(kind_of<R>()));
        }
      },
      rule);
}

void require_states(const Rule& rule, const States& states, std::size_t count) {
  const std::span<const Role> roles = states_of(rule);
  for (std::size_t i = 0; i < roles.size(); ++i) require_same_size(states[i].size(), count, name_of(roles[i]));
}

void require_states(const Rule& rule, const QuantizedStates& states, std::size_t count) {
  const std::span<const Role> roles = states_of(rule);
  for (std::size_t i = 0; i < roles.size(); ++i) {
    require_same_size(states[i].codes.size(), count, name_of(roles[i]));
    if (states[i].scales.size() == block_count(count)) continue;
    throw InvalidArgument("update: " + std::string(name_of(roles[i])) + " has " +
                          std::to_string(states[i].scales.size()) + " scales; " + std::to_string(count) +
                          " elements have " + std::to_string(block_count(count)) + " blocks");
  }
}

}  // namespace

void copy(std::span<const float> source, float* destination) {
  const auto copy_piece =
      source.size() < past_cache_size ? cpu::current_table().copy : cpu::current_table().copy_past_cache;
  parallel_for(source.size(), grain_size, [&](std::size_t begin, std::size_t end) {
    copy_piece(source.data() + begin, destination + begin, end - begin);
  });
}

void cast(const void* from, DType from_dtype, void* to, DType to_dtype, std::size_t count) {
  if (from_dtype == DType::fp32 && to_dtype == DType::fp32) {
    return copy({static_cast<const float*>(from), count}, static_cast<float*>(to));
  }
  const auto* const source = static_cast<const std::byte*>(from);
  auto* const destination = static_cast<std::byte*>(to);
  const std::size_t from_size = size_of(from_dtype), to_size = size_of(to_dtype);
  const auto cast_piece =
      cpu::current_table().cast[static_cast<std::size_t>(from_dtype)][static_cast<std::size_t>(to_dtype)];
  parallel_for(count, grain_size, [&](std::size_t begin, std::size_t end) {
    if (from_dtype == to_dtype) {
      std::memcpy(destination + begin * to_size, source + begin * from_size, (end - begin) * to_size);
    } else {
      cast_piece(source + begin * from_size, destination + begin * to_size, end - begin);
    }
  });
}

GradStatistics reduce(std::span<const float* const> parts, float factor, std::span<float> result,
                      Accumulate accumulate) {
  if (parts.empty()) throw InvalidArgument("reduce: no parts; give one pointer per rank");
  const cpu::Reduction reduction{parts.data(), parts.size(), factor, result.data()};
  const auto reduce_block = kernel_of_reduce(result, accumulate);
  return sum_over_blocks<GradStatistics>(
      result.size(), [&](std::size_t begin, std::size_t end) { return reduce_block(reduction, begin, end); });
}

GradStatistics grad_statistics(std::span<const float> data) {
  return sum_over_blocks<GradStatistics>(data.size(), [&](std::size_t begin, std::size_t end) {
    return cpu::current_table().statistics(data.data() + begin, end - begin);
  });
}

void scale(std::span<float> data, float factor) {
  parallel_for(data.size(), grain_size, [&](std::size_t begin, std::size_t end) {
    cpu::current_table().scale(data.data() + begin, end - begin, factor);
  });
}

void update(const Rule& rule, const ParamStep& step, const Weights& weights, std::span<const float> grad,
            const States& states) {
  require_states(rule, states, grad.size());
  with_rule<Kind::elementwise>(rule, step, [&](const auto& kernels, const auto& scalars) {
    const auto update_piece = kernel_for(kernels.update, weights);
    parallel_for(grad.size(), grain_size, [&](std::size_t begin, std::size_t end) {
      update_piece(scalars, step.grad_scale, arrays_from(begin, weights, grad.data(), states), end - begin);
    });
  });
}

void update(const Rule& rule, const ParamStep& step, const Weights& weights, std::span<const float> grad,
            const QuantizedStates& states) {
  require_states(rule, states, grad.size());
  with_rule<Kind::quantized>(rule, step, [&](const auto& kernels, const auto& scalars) {
    const auto update_block = kernel_for(kernels.update, weights);
    parallel_for(grad.size(), grain_size, [&](std::size_t begin, std::size_t end) {
      for (; begin < end; begin += quantization_block) {
        const std::size_t count = std::min(quantization_block, end - begin);
        update_block(scalars, step.grad_scale, arrays_from(begin, weights, grad.data(), states), count);
      }
    });
  });
}

NormSquares take(const Rule& rule, const ParamStep& step, const Weights& weights, std::span<const float> grad,
                 const States& states) {
  require_states(rule, states, grad.size());
  NormSquares sum;
  with_rule<Kind::normed>(rule, step, [&](const auto& kernels, const auto& scalars) {
    const auto take_block = kernel_for(kernels.take, weights);
    sum = sum_over_blocks<NormSquares>(grad.size(), [&](std::size_t begin, std::size_t end) {
      return take_block(scalars, step.grad_scale, arrays_from(begin, weights, grad.data(), states), end - begin);
    });
  });
  return sum;
}

void move(const Rule& rule, const ParamStep& step, float ratio, const Weights& weights, const States& states) {
  const std::size_t count = states[0].size();
  require_states(rule, states, count);
  with_rule<Kind::normed>(rule, step, [&](const auto& kernels, const auto& scalars) {
    const auto move_piece = kernel_for(kernels.move, weights);
    parallel_for(count, grain_size, [&](std::size_t begin, std::size_t end) {
      move_piece(scalars, ratio, arrays_from(begin, weights, nullptr, states), end - begin);
    });
  });
}

void update(const Rule& rule, const ParamStep& step, std::span<float> param, std::span<const float> grad,
            const States& states) {
  require_same_size(param.size(), grad.size(), "param");
  update(rule, step, Weights{.param = param.data()}, grad, states);
}

}  // namespace aliquot
