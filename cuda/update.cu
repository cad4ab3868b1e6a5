#include <algorithm>
#include <array>
#include <utility>
#include <variant>

#include "aliquot/device_kernels.h"
#include "aliquot/split_master.h"
#include "cuda/launch.h"
#include "cuda/quads.h"

namespace aliquot::cuda {
namespace {

/// The masters of each form, in fours: load() gives fp32 values, store() writes them and, where that is another array,
/// the parameter of the model's type.
struct ParamItself {
  float* param;

  template <typename At>
  __device__ float4 load(At at) const {
    return at.load(param);
  }
  template <typename At>
  __device__ void store(At at, float4 v) const {
    at.store(v, param);
  }
};

template <typename Param>
struct BesideParam {
  Param* param;
  float* master;

  template <typename At>
  __device__ float4 load(At at) const {
    return at.load(master);
  }
  template <typename At>
  __device__ void store(At at, float4 v) const {
    at.store(v, master);
    at.store(v, param);
  }
};

struct InTwoHalves {
  std::uint16_t* param;
  std::uint16_t* low;

  template <typename At>
  __device__ float4 load(At at) const {
    const ushort4 h = at.load_bits(param), l = at.load_bits(low);
    return make_float4(join_master({h.x, l.x}), join_master({h.y, l.y}), join_master({h.z, l.z}),
                       join_master({h.w, l.w}));
  }
  template <typename At>
  __device__ void store(At at, float4 v) const {
    const SplitMaster x = split_master(v.x), y = split_master(v.y), z = split_master(v.z), w = split_master(v.w);
    at.store_bits(make_ushort4(x.high, y.high, z.high, w.high), param);
    at.store_bits(make_ushort4(x.low, y.low, z.low, w.low), low);
  }
};

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

/// Calls body(masters) with the form that `weights` have.
template <typename Body>
void with_masters(const Weights& weights, const Body& body) {
  auto* const master = static_cast<float*>(weights.master);
  if (weights.form == Master::none && weights.dtype == DType::fp32) {
    body(ParamItself{static_cast<float*>(weights.param)});
  } else if (weights.form == Master::fp32 && weights.dtype == DType::bf16) {
    body(BesideParam<Bf16>{static_cast<Bf16*>(weights.param), master});
  } else if (weights.form == Master::fp32 && weights.dtype == DType::fp16) {
    body(BesideParam<Fp16>{static_cast<Fp16*>(weights.param), master});
  } else if (weights.form == Master::low16 && weights.dtype == DType::bf16) {
    body(InTwoHalves{static_cast<std::uint16_t*>(weights.param), static_cast<std::uint16_t*>(weights.master)});
  } else {
    throw InvalidArgument("update: no master of this form goes with parameters of " +
                          std::string(name_of(weights.dtype)) +
                          "; fp32 parameters are their own master, bf16 has fp32 or low16, fp16 has fp32");
  }
}

}  // namespace

void update(const Rule& rule, const UpdateArrays& arrays, const Chunk* chunks, std::size_t chunk_count,
            const void* scalars, const StepState* state, Stream stream) {
  const Weights& weights = arrays.weights;
  const bool aligned = aligned_to_16({weights.param, weights.master, arrays.grad, arrays.states[0], arrays.states[1]});
  const auto launch = [&]<typename R, typename Masters, typename Grad>(const R&, const Masters& masters, Grad) {
    if (chunk_count == 0) return;
    Gradients<Grad, R::states.size()> gradients{static_cast<const Grad*>(arrays.grad), {}};
    std::copy_n(arrays.states.begin(), gradients.states.size(), gradients.states.begin());
    update_kernel<R><<<static_cast<unsigned>(chunk_count), block_threads, 0, native(stream)>>>(
        masters, gradients, aligned, chunks, static_cast<const ParamScalars<R>*>(scalars), state);
  };
  std::visit(
      [&](const auto& one) {
        with_masters(weights, [&](const auto& masters) {
          with_gradient_type(arrays.grad_dtype, [&](auto grad) { launch(one, masters, grad); });
        });
      },
      rule);
  check(cudaGetLastError(), "launch update");
}

}  // namespace aliquot::cuda
