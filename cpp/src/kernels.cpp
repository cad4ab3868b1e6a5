#include "aliquot/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "aliquot/error.h"
#include "aliquot/parallel.h"
#include "cpu/kernel_table.h"

namespace aliquot {
namespace {

using cpu::block_size;

/// Elements from which on stores that bypass the cache were measured to be faster.
constexpr std::size_t past_cache_size = std::size_t{1} << 20;
/// Elements that one thread takes at a time: some 20 us of work, more than it costs to wake another thread.
constexpr std::size_t grain_size = 8 * block_size;

/// The sum over the blocks of [0, count) of statistics(begin, end), added in the blocks' order.
template <typename Statistics>
GradStatistics sum_over_blocks(std::size_t count, const Statistics& statistics) {
  std::vector<GradStatistics> blocks((count + block_size - 1) / block_size);
  parallel_for(count, grain_size, [&](std::size_t begin, std::size_t end) {
    for (; begin < end; begin += block_size) {
      blocks[begin / block_size] = statistics(begin, std::min(end, begin + block_size));
    }
  });
  GradStatistics sum;
  for (const GradStatistics& block : blocks) {
    sum.square_sum += block.square_sum;
    sum.non_finite += block.non_finite;
  }
  return sum;
}

cpu::AdamWScalars scalars_of(const AdamWStep& step) {
  const double correction1 = 1 - std::pow(step.beta1, static_cast<double>(step.step));
  const double correction2 = 1 - std::pow(step.beta2, static_cast<double>(step.step));
  return {.grad_scale = step.grad_scale,
          .decay = static_cast<float>(1 - step.lr * step.weight_decay),
          .one_minus_beta1 = static_cast<float>(1 - step.beta1),
          .beta2 = static_cast<float>(step.beta2),
          .one_minus_beta2 = static_cast<float>(1 - step.beta2),
          .inverse_correction2 = static_cast<float>(1 / std::sqrt(correction2)),
          .eps = static_cast<float>(step.eps),
          .minus_step_size = static_cast<float>(-step.lr / correction1)};
}

auto kernel_of_reduce(std::span<const float> result, Accumulate accumulate) {
  const cpu::KernelTable& table = cpu::current_table();
  if (accumulate == Accumulate::yes) return table.reduce_add;
  const bool aligned = reinterpret_cast<std::uintptr_t>(result.data()) % 64 == 0;
  return aligned && result.size() >= past_cache_size ? table.reduce_assign_past_cache : table.reduce_assign;
}

cpu::KernelTable::AdamW kernel_of_adamw(const Weights& weights) {
  const cpu::KernelTable& table = cpu::current_table();
  const bool bf16 = weights.dtype == DType::bf16;
  if (weights.form == Master::none && weights.dtype == DType::fp32) return table.adamw;
  if (weights.form == Master::low16 && bf16) return table.adamw_split;
  if (weights.form == Master::fp32 && weights.dtype != DType::fp32) return bf16 ? table.adamw_bf16 : table.adamw_fp16;
  throw InvalidArgument("adamw: no master of this form goes with parameters of " + std::string(name_of(weights.dtype)) +
                        "; fp32 parameters are their own master, bf16 has fp32 or low16, fp16 has fp32");
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
  return sum_over_blocks(result.size(),
                         [&](std::size_t begin, std::size_t end) { return reduce_block(reduction, begin, end); });
}

GradStatistics grad_statistics(std::span<const float> data) {
  return sum_over_blocks(data.size(), [&](std::size_t begin, std::size_t end) {
    return cpu::current_table().statistics(data.data() + begin, end - begin);
  });
}

void scale(std::span<float> data, float factor) {
  parallel_for(data.size(), grain_size, [&](std::size_t begin, std::size_t end) {
    cpu::current_table().scale(data.data() + begin, end - begin, factor);
  });
}

void adamw(const AdamWStep& step, std::span<float> param, std::span<const float> grad, std::span<float> exp_avg,
           std::span<float> exp_avg_sq) {
  if (grad.size() != param.size()) {
    throw InvalidArgument("adamw: param has " + std::to_string(param.size()) + " elements, grad " +
                          std::to_string(grad.size()) + "; both must be equal");
  }
  adamw(step, Weights{.param = param.data()}, grad, exp_avg, exp_avg_sq);
}

void adamw(const AdamWStep& step, const Weights& weights, std::span<const float> grad, std::span<float> exp_avg,
           std::span<float> exp_avg_sq) {
  if (exp_avg.size() != grad.size() || exp_avg_sq.size() != grad.size()) {
    throw InvalidArgument("adamw: grad has " + std::to_string(grad.size()) + " elements, exp_avg " +
                          std::to_string(exp_avg.size()) + ", exp_avg_sq " + std::to_string(exp_avg_sq.size()) +
                          "; all must be equal");
  }
  if (step.step < 1) throw InvalidArgument("adamw: step is " + std::to_string(step.step) + "; steps count from 1");
  const cpu::AdamWScalars scalars = scalars_of(step);
  const auto step_piece = kernel_of_adamw(weights);
  const std::size_t master_size = weights.form == Master::low16 ? sizeof(std::uint16_t) : sizeof(float);
  const auto at = [](void* array, std::size_t bytes) -> void* {
    return array == nullptr ? nullptr : static_cast<std::byte*>(array) + bytes;
  };
  parallel_for(grad.size(), grain_size, [&](std::size_t begin, std::size_t end) {
    step_piece(scalars,
               {.param = at(weights.param, begin * size_of(weights.dtype)),
                .master = at(weights.master, begin * master_size),
                .grad = grad.data() + begin,
                .exp_avg = exp_avg.data() + begin,
                .exp_avg_sq = exp_avg_sq.data() + begin},
               end - begin);
  });
}

}  // namespace aliquot
