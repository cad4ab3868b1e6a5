// The two passes of rules that step a parameter by norms of the whole of it.
#include <array>
#include <cstddef>
#include <utility>
#include <variant>

#include "aliquot/device_kernels.h"
#include "cuda/launch.h"
#include "cuda/masters.h"
#include "cuda/quads.h"
#include "cuda/statistics.h"

namespace aliquot::cuda {
namespace {

template <std::size_t count>
using StatePointers = std::array<float*, count>;

/// body(begin, end) for each of this thread's quads in `chunk`.
template <typename Body>
__device__ void for_quads_of(const Chunk& chunk, bool aligned, const Body& body) {
  const std::size_t end = chunk.begin + chunk.count;
  for (std::size_t i = chunk.begin + 4 * threadIdx.x; i < end; i += 4 * block_threads) {
    at_quad(i, end, aligned && chunk.begin % 4 == 0, body);
  }
}

template <typename R, std::size_t... i>
__device__ float4 directions(const typename R::Scalars& s, float4 p, const std::array<float4, sizeof...(i)>& states,
                             std::index_sequence<i...>) {
  return make_float4(R::direction(s, p.x, states[i].x...), R::direction(s, p.y, states[i].y...),
                     R::direction(s, p.z, states[i].z...), R::direction(s, p.w, states[i].w...));
}

template <typename R, typename Masters, typename Grad, std::size_t... i>
__global__ void __launch_bounds__(block_threads)
    take_kernel(Masters masters, const Grad* grad, StatePointers<sizeof...(i)> states, bool aligned,
                const Chunk* chunks, const ParamScalars<R>* scalars, const StepState* state, NormSquares* of_chunks,
                std::index_sequence<i...> each) {
  const Chunk chunk = chunks[blockIdx.x];
  const float grad_scale = state->grad_scale;
  const ParamScalars<R> s = scalars[chunk.param];
  SquareSum of_params, of_directions;
  if (state->skip == 0 && s.stepped != 0) {
    for_quads_of(chunk, aligned, [&](auto at) {
      const float4 p = masters.load(at), g = at.read(grad);
      std::array<float4, sizeof...(i)> here{at.load(states[i])...};
      R::take(s.of_rule, g.x * grad_scale, here[i].x...);
      R::take(s.of_rule, g.y * grad_scale, here[i].y...);
      R::take(s.of_rule, g.z * grad_scale, here[i].z...);
      R::take(s.of_rule, g.w * grad_scale, here[i].w...);
      (at.store(here[i], states[i]), ...);
      of_params.add(p);
      of_directions.add(directions<R>(s.of_rule, p, here, each));
    });
  }
  const double param = block_sum<block_threads>(of_params.total());
  const double direction = block_sum<block_threads>(of_directions.total());
  if (threadIdx.x == 0) of_chunks[blockIdx.x] = {param, direction};
}

template <typename R, typename Masters, std::size_t... i>
__global__ void __launch_bounds__(block_threads)
    move_kernel(Masters masters, StatePointers<sizeof...(i)> states, bool aligned, const Chunk* chunks,
                const ParamScalars<R>* scalars, const StepState* state, const float* ratios,
                std::index_sequence<i...> each) {
  const Chunk chunk = chunks[blockIdx.x];
  if (state->skip != 0) return;
  const ParamScalars<R> s = scalars[chunk.param];
  if (s.stepped == 0) return;
  const float ratio = ratios[chunk.param];
  for_quads_of(chunk, aligned, [&](auto at) {
    float4 p = masters.load(at);
    const float4 d = directions<R>(s.of_rule, p, {at.read(states[i])...}, each);
    R::move(s.of_rule, ratio, p.x, d.x);
    R::move(s.of_rule, ratio, p.y, d.y);
    R::move(s.of_rule, ratio, p.z, d.z);
    R::move(s.of_rule, ratio, p.w, d.w);
    masters.store(at, p);
  });
}

__global__ void __launch_bounds__(block_threads)
    sum_norms_kernel(const NormSquares* of_chunks, const ChunkSpan* spans, NormSquares* sums) {
  const ChunkSpan span = spans[blockIdx.x];
  NormSquares mine;
  for (unsigned i = threadIdx.x; i < span.count; i += block_threads) {
    mine.param += of_chunks[span.first + i].param;
    mine.direction += of_chunks[span.first + i].direction;
  }
  const double param = block_sum<block_threads>(mine.param);
  const double direction = block_sum<block_threads>(mine.direction);
  if (threadIdx.x == 0) sums[blockIdx.x] = {param, direction};
}

__global__ void trust_ratios_kernel(const NormSquares* sums, std::size_t param_count, std::size_t parts,
                                    float* ratios) {
  const std::size_t param = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (param >= param_count) return;
  NormSquares sum;
  for (std::size_t part = 0; part < parts; ++part) {
    sum.param += sums[part * param_count + param].param;
    sum.direction += sums[part * param_count + param].direction;
  }
  ratios[param] = trust_ratio(sum.param, sum.direction);
}

/// launch(R{}, masters, scalars, pointers to states, their indices, whether all is aligned), if there is work.
template <typename Launch>
void with_normed(const Rule& rule, const UnitUpdate& unit, const Launch& launch) {
  const Weights& w = unit.weights;
  const bool aligned = aligned_to_16({w.param, w.master, unit.grad, unit.states[0], unit.states[1]});
  std::visit(
      [&]<typename R>(const R& one) {
        if constexpr (Normed<R>) {
          constexpr std::size_t state_count = R::states.size();
          StatePointers<state_count> states;
          std::copy_n(unit.states.begin(), state_count, states.begin());
          const auto* const scalars = static_cast<const ParamScalars<R>*>(unit.scalars);
          with_masters(w, [&](const auto& masters) {
            launch(one, masters, scalars, states, std::make_index_sequence<state_count>(), aligned);
          });
        } else {
          throw InvalidArgument("update: " + std::string(R::name) + " takes one pass");
        }
      },
      rule);
}

}  // namespace

void take(const Rule& rule, const UnitUpdate& unit, NormSquares* of_chunks, Stream stream) {
  with_normed(rule, unit, [&]<typename R>(const R&, auto masters, auto scalars, auto states, auto each, bool aligned) {
    with_gradient_type(unit.grad_dtype, [&]<typename Grad>(Grad) {
      if (unit.chunk_count == 0) return;
      take_kernel<R><<<static_cast<unsigned>(unit.chunk_count), block_threads, 0, native(stream)>>>(
          masters, static_cast<const Grad*>(unit.grad), states, aligned, unit.chunks, scalars, unit.state, of_chunks,
          each);
    });
  });
  check(cudaGetLastError(), "launch take");
}

void move(const Rule& rule, const UnitUpdate& unit, const float* ratios, Stream stream) {
  with_normed(rule, unit, [&]<typename R>(const R&, auto masters, auto scalars, auto states, auto each, bool aligned) {
    if (unit.chunk_count == 0) return;
    move_kernel<R><<<static_cast<unsigned>(unit.chunk_count), block_threads, 0, native(stream)>>>(
        masters, states, aligned, unit.chunks, scalars, unit.state, ratios, each);
  });
  check(cudaGetLastError(), "launch move");
}

void sum_norms(const NormSquares* of_chunks, const ChunkSpan* spans, std::size_t span_count, NormSquares* sums,
               Stream stream) {
  if (span_count == 0) return;
  sum_norms_kernel<<<static_cast<unsigned>(span_count), block_threads, 0, native(stream)>>>(of_chunks, spans, sums);
  check(cudaGetLastError(), "launch sum_norms");
}

void trust_ratios(const NormSquares* sums, std::size_t param_count, std::size_t parts, float* ratios, Stream stream) {
  if (param_count == 0) return;
  const auto blocks = static_cast<unsigned>((param_count + block_threads - 1) / block_threads);
  trust_ratios_kernel<<<blocks, block_threads, 0, native(stream)>>>(sums, param_count, parts, ratios);
  check(cudaGetLastError(), "launch trust_ratios");
}

}  // namespace aliquot::cuda
