#include <algorithm>
#include <array>
#include <utility>
#include <variant>

#include "aliquot/device_kernels.h"
#include "cuda/launch.h"
#include "cuda/masters.h"
#include "cuda/quads.h"
#include "cuda/update_quantized.h"

namespace aliquot::cuda {
namespace {

template <typename Grad, std::size_t state_count>
struct Gradients {
  const Grad* grad;
  std::array<float*, state_count> states;
};

/// The arithmetic of rules.h, element by element.
template <typename R, typename At, typename Masters, typename Grad, std::size_t... i>
__device__ void update_quad(At at, const Masters& masters, const Gradients<Grad, sizeof...(i)>& arrays,
                            const typename R::Scalars& s, float grad_scale, std::index_sequence<i...>) {
  float4 p = masters.load(at);
  [[maybe_unused]] std::array<float4, sizeof...(i)> states{at.load(arrays.states[i])...};
  const float4 g = at.read(arrays.grad);
  R::update(s, p.x, g.x * grad_scale, states[i].x...);
  R::update(s, p.y, g.y * grad_scale, states[i].y...);
  R::update(s, p.z, g.z * grad_scale, states[i].z...);
  R::update(s, p.w, g.w * grad_scale, states[i].w...);
  masters.store(at, p);
  (at.store(states[i], arrays.states[i]), ...);
}

template <typename R, typename Masters, typename Grad, std::size_t state_count>
__global__ void __launch_bounds__(block_threads)
    update_kernel(Masters masters, Gradients<Grad, state_count> arrays, bool aligned, const Chunk* chunks,
                  const ParamScalars<R>* scalars, const StepState* state) {
  const Chunk chunk = chunks[blockIdx.x];
  const float grad_scale = state->grad_scale;
  if (state->skip != 0) return;
  const ParamScalars<R> s = scalars[chunk.param];
  if (s.stepped == 0) return;
  const std::size_t end = chunk.begin + chunk.count;
  for (std::size_t i = chunk.begin + 4 * threadIdx.x; i < end; i += 4 * block_threads) {
    at_quad(i, end, aligned && chunk.begin % 4 == 0, [&](auto at) {
      update_quad<R>(at, masters, arrays, s.of_rule, grad_scale, std::make_index_sequence<state_count>());
    });
  }
}

template <typename R>
void launch_update(const UnitUpdate& unit, Stream stream) {
  const Weights& w = unit.weights;
  const bool aligned = aligned_to_16({w.param, w.master, unit.grad, unit.states[0], unit.states[1]});
  with_masters(w, [&](const auto& masters) {
    with_gradient_type(unit.grad_dtype, [&]<typename Grad>(Grad) {
      if (unit.chunk_count == 0) return;
      Gradients<Grad, R::states.size()> gradients{static_cast<const Grad*>(unit.grad), {}};
      std::copy_n(unit.states.begin(), gradients.states.size(), gradients.states.begin());
      update_kernel<R><<<static_cast<unsigned>(unit.chunk_count), block_threads, 0, native(stream)>>>(
          masters, gradients, aligned, unit.chunks, static_cast<const ParamScalars<R>*>(unit.scalars), unit.state);
    });
  });
}

}  // namespace

void update(const Rule& rule, const UnitUpdate& unit, Stream stream) {
  std::visit(
      [&]<typename R>(const R& one) {
        if constexpr (Normed<R>) {
          throw InvalidArgument("update: " + std::string(R::name) + " takes two passes");
        } else if constexpr (Quantized<R>) {
          update_quantized(one, unit, stream);
        } else {
          launch_update<R>(unit, stream);
        }
      },
      rule);
  check(cudaGetLastError(), "launch update");
}

}  // namespace aliquot::cuda
