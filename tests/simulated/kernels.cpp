// Fills the seam of device_kernels.h: what the kernels of cuda/ compute, by the plainest loops.
#include "aliquot/device_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "aliquot/quantization.h"
#include "aliquot/split_master.h"
#include "tests/cuda/busy.h"
#include "tests/simulated/streams.h"

namespace aliquot {
namespace {

using simulated::give;

std::vector<float> as_floats(const void* data, DType dtype, std::size_t count) {
  std::vector<float> values(count);
  cast(data, dtype, values.data(), DType::fp32, count);
  return values;
}

cuda::DeviceStatistics statistics_of(const std::vector<float>& values) {
  cuda::DeviceStatistics statistics;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) {
      statistics.square_sum += static_cast<double>(values[i]) * values[i];
    } else if (statistics.non_finite++ == 0) {
      statistics.first_bad = i;
    }
  }
  return statistics;
}

/// One parameter's elements of a chunk, as fp32; written back when it dies.
class Masters {
 public:
  Masters(const Weights& weights, const cuda::Chunk& chunk) : weights_(weights), begin_(chunk.begin) {
    values.resize(chunk.count);
    if (weights.form == Master::low16) {
      join_masters(param<std::uint16_t>(), low(), values);
    } else {
      const auto* const from = weights.form == Master::fp32 ? master() : param<float>();
      std::copy_n(from, values.size(), values.begin());
    }
  }
  ~Masters() {
    if (weights_.form == Master::low16) {
      split_masters(values, param<std::uint16_t>(), low());
      return;
    }
    if (weights_.form == Master::fp32) std::ranges::copy(values, master());
    auto* const here = static_cast<std::byte*>(weights_.param) + begin_ * size_of(weights_.dtype);
    cast(values.data(), DType::fp32, here, weights_.dtype, values.size());
  }
  Masters(const Masters&) = delete;
  Masters& operator=(const Masters&) = delete;

  std::vector<float> values;

 private:
  template <typename T>
  T* param() const {
    return static_cast<T*>(weights_.param) + begin_;
  }
  float* master() const { return static_cast<float*>(weights_.master) + begin_; }
  std::uint16_t* low() const { return static_cast<std::uint16_t*>(weights_.master) + begin_; }

  Weights weights_;
  std::size_t begin_;
};

std::vector<float> gradients_of(const cuda::UnitUpdate& unit, const cuda::Chunk& chunk) {
  const auto* const begin = static_cast<const std::byte*>(unit.grad) + chunk.begin * size_of(unit.grad_dtype);
  std::vector<float> values = as_floats(begin, unit.grad_dtype, chunk.count);
  for (float& value : values) value *= unit.state->grad_scale;
  return values;
}

/// visit(scalars, chunk, its number) for each chunk that is stepped.
template <typename R, typename Visit>
void for_stepped(const cuda::UnitUpdate& unit, const Visit& visit) {
  const auto* const scalars = static_cast<const cuda::ParamScalars<R>*>(unit.scalars);
  for (std::size_t i = 0; i < unit.chunk_count; ++i) {
    const cuda::Chunk& chunk = unit.chunks[i];
    if (unit.state->skip == 0 && scalars[chunk.param].stepped != 0) visit(scalars[chunk.param].of_rule, chunk, i);
  }
}

/// call(state of element i, ...), with as many as the rule has.
template <typename R, typename Call>
decltype(auto) with_states(const cuda::UnitUpdate& unit, std::size_t i, const Call& call) {
  return [&]<std::size_t... s>(std::index_sequence<s...>) -> decltype(auto) {
    return call(unit.states[s][i]...);
  }(std::make_index_sequence<R::states.size()>());
}

template <typename R>
void update_all(const cuda::UnitUpdate& unit) {
  for_stepped<R>(unit, [&](const typename R::Scalars& scalars, const cuda::Chunk& chunk, std::size_t) {
    Masters masters(unit.weights, chunk);
    const std::vector<float> gradients = gradients_of(unit, chunk);
    for (std::size_t i = 0; i < chunk.count; ++i) {
      with_states<R>(unit, chunk.begin + i,
                     [&](auto&... states) { R::update(scalars, masters.values[i], gradients[i], states...); });
    }
  });
}

/// A chunk begins where a block does, and its states are decoded, updated and encoded as a whole.
template <Quantized R>
void update_all(const cuda::UnitUpdate& unit) {
  for_stepped<R>(unit, [&](const typename R::Scalars& scalars, const cuda::Chunk& chunk, std::size_t) {
    Masters masters(unit.weights, chunk);
    const std::vector<float> gradients = gradients_of(unit, chunk);
    const std::size_t slot = scale_slot(chunk.begin, chunk.param, unit.shard_numel);
    std::vector<float> states[R::states.size()];
    cuda::UnitUpdate decoded = unit;
    for (std::size_t s = 0; s < R::states.size(); ++s) {
      states[s].resize(chunk.count);
      dequantize(R::states[s], unit.codes[s] + chunk.begin, unit.scales[s] + slot, states[s]);
      decoded.states[s] = states[s].data();
    }
    for (std::size_t i = 0; i < chunk.count; ++i) {
      with_states<R>(decoded, i, [&](auto&... of) { R::update(scalars, masters.values[i], gradients[i], of...); });
    }
    for (std::size_t s = 0; s < R::states.size(); ++s) {
      quantize(R::states[s], states[s], unit.codes[s] + chunk.begin, unit.scales[s] + slot);
    }
  });
}

template <typename R>
void take_all(const cuda::UnitUpdate& unit, NormSquares* of_chunks) {
  std::fill_n(of_chunks, unit.chunk_count, NormSquares{});
  for_stepped<R>(unit, [&](const typename R::Scalars& scalars, const cuda::Chunk& chunk, std::size_t number) {
    const Masters masters(unit.weights, chunk);
    const std::vector<float> gradients = gradients_of(unit, chunk);
    for (std::size_t i = 0; i < chunk.count; ++i) {
      const double p = masters.values[i];
      const double direction = with_states<R>(unit, chunk.begin + i, [&](auto&... states) {
        R::take(scalars, gradients[i], states...);
        return R::direction(scalars, masters.values[i], states...);
      });
      of_chunks[number] += {p * p, direction * direction};
    }
  });
}

template <typename R>
void move_all(const cuda::UnitUpdate& unit, const float* ratios) {
  for_stepped<R>(unit, [&](const typename R::Scalars& scalars, const cuda::Chunk& chunk, std::size_t) {
    Masters masters(unit.weights, chunk);
    for (std::size_t i = 0; i < chunk.count; ++i) {
      float& p = masters.values[i];
      with_states<R>(unit, chunk.begin + i, [&](auto&... states) {
        R::move(scalars, ratios[chunk.param], p, R::direction(scalars, p, states...));
      });
    }
  });
}

}  // namespace

namespace cuda {

void pack(const Layout& layout, std::span<const PackSource> sources, void* full, DType full_dtype,
          std::uint8_t* present, Stream stream) {
  give(stream, [&layout, sources = std::vector(sources.begin(), sources.end()), full, full_dtype, present] {
    std::memset(full, 0, layout.numel() * size_of(full_dtype));
    for (std::size_t p = 0; p < sources.size(); ++p) {
      if (sources[p].data == nullptr) continue;
      const Range range = layout.param(p);
      auto* const place = static_cast<std::byte*>(full) + range.begin * size_of(full_dtype);
      aliquot::cast(sources[p].data, sources[p].dtype, place, full_dtype, range.size());
      if (present != nullptr) present[p] |= 1;
    }
  });
}

void cast(const void* from, DType from_dtype, void* to, DType to_dtype, std::size_t count, Stream stream) {
  give(stream, [=] { aliquot::cast(from, from_dtype, to, to_dtype, count); });
}

void scale(void* data, DType dtype, std::size_t count, const float* factor, Stream stream) {
  give(stream, [=] {
    std::vector<float> values = as_floats(data, dtype, count);
    for (float& value : values) value *= *factor;
    aliquot::cast(values.data(), DType::fp32, data, dtype, count);
  });
}

std::size_t reduce_workspace_bytes() { return 64; }

void reduce(std::span<const void* const> parts, DType dtype, float factor, void* result, DType result_dtype,
            std::size_t count, Accumulate accumulate, DeviceStatistics* statistics, void*, Stream stream) {
  give(stream, [=, parts = std::vector(parts.begin(), parts.end())] {
    std::vector<float> sum = as_floats(parts.front(), dtype, count);
    for (std::size_t part = 1; part < parts.size(); ++part) {
      const std::vector<float> addend = as_floats(parts[part], dtype, count);
      for (std::size_t i = 0; i < count; ++i) sum[i] += addend[i];
    }
    const std::vector<float> before =
        accumulate == Accumulate::yes ? as_floats(result, result_dtype, count) : std::vector<float>(count);
    for (std::size_t i = 0; i < count; ++i) sum[i] = before[i] + factor * sum[i];
    aliquot::cast(sum.data(), DType::fp32, result, result_dtype, count);
    *statistics = statistics_of(as_floats(result, result_dtype, count));
  });
}

void pull_and_reduce(std::span<const void* const> parts, DType dtype, float factor, void* result, DType result_dtype,
                     std::size_t count, Accumulate accumulate, DeviceStatistics* statistics, void* workspace,
                     Stream stream) {
  reduce(parts, dtype, factor, result, result_dtype, count, accumulate, statistics, workspace, stream);
}

void grad_statistics(const void* data, DType dtype, std::size_t count, DeviceStatistics* statistics, void*,
                     Stream stream) {
  give(stream, [=] { *statistics = statistics_of(as_floats(data, dtype, count)); });
}

void update_loss_scale(LossScale* scale, const ScaleRule& rule, Stream stream) {
  give(stream, [=] { *scale = scale->updated(rule); });
}

void update(const Rule& rule, const UnitUpdate& unit, Stream stream) {
  std::visit(
      [&]<typename R>(const R&) {
        if constexpr (!Normed<R>) give(stream, [unit] { update_all<R>(unit); });
      },
      rule);
}

void take(const Rule& rule, const UnitUpdate& unit, NormSquares* of_chunks, Stream stream) {
  std::visit(
      [&]<typename R>(const R&) {
        if constexpr (Normed<R>) give(stream, [=] { take_all<R>(unit, of_chunks); });
      },
      rule);
}

void move(const Rule& rule, const UnitUpdate& unit, const float* ratios, Stream stream) {
  std::visit(
      [&]<typename R>(const R&) {
        if constexpr (Normed<R>) give(stream, [=] { move_all<R>(unit, ratios); });
      },
      rule);
}

void sum_norms(const NormSquares* of_chunks, const ChunkSpan* spans, std::size_t span_count, NormSquares* sums,
               Stream stream) {
  give(stream, [=] {
    for (std::size_t i = 0; i < span_count; ++i) {
      sums[i] = {};
      for (std::uint32_t chunk = 0; chunk < spans[i].count; ++chunk) sums[i] += of_chunks[spans[i].first + chunk];
    }
  });
}

void trust_ratios(const NormSquares* sums, std::size_t param_count, std::size_t parts, float* ratios, Stream stream) {
  give(stream, [=] {
    for (std::size_t param = 0; param < param_count; ++param) {
      NormSquares sum;
      for (std::size_t part = 0; part < parts; ++part) sum += sums[part * param_count + param];
      ratios[param] = trust_ratio(sum.param, sum.direction);
    }
  });
}

void split_masters(const float* master, void* param, std::uint16_t* low, std::size_t count, Stream stream) {
  give(stream, [=] { aliquot::split_masters({master, count}, static_cast<std::uint16_t*>(param), low); });
}

}  // namespace cuda

void test::axpy(float a, const float* x, float* y, std::size_t count, Stream stream) {
  give(stream, [=] {
    for (std::size_t i = 0; i < count; ++i) y[i] += a * x[i];
  });
}

}  // namespace aliquot
