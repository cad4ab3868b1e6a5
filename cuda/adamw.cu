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

template <typename Grad>
struct Gradients {
  const Grad* grad;
  float* exp_avg;
  float* exp_avg_sq;
};

/// One element: the arithmetic of cpu/kernels_body.h, operation by operation.
__device__ float updated(const ParamScalars& s, float grad_scale, float master, float grad, float& m, float& v) {
  const float g = grad * grad_scale;
  m = m + (g - m) * s.one_minus_beta1;
  v = v * s.beta2 + s.one_minus_beta2 * g * g;
  const float denominator = sqrtf(v) * s.inverse_correction2 + s.eps;
  return master * s.decay + s.minus_step_size * m / denominator;
}

template <typename At, typename Masters, typename Grad>
__device__ void update_quad(At at, const Masters& masters, const Gradients<Grad>& arrays, const ParamScalars& s,
                            float grad_scale) {
  float4 p = masters.load(at), m = at.load(arrays.exp_avg), v = at.load(arrays.exp_avg_sq);
  const float4 g = at.read(arrays.grad);
  p.x = updated(s, grad_scale, p.x, g.x, m.x, v.x);
  p.y = updated(s, grad_scale, p.y, g.y, m.y, v.y);
  p.z = updated(s, grad_scale, p.z, g.z, m.z, v.z);
  p.w = updated(s, grad_scale, p.w, g.w, m.w, v.w);
  masters.store(at, p);
  at.store(m, arrays.exp_avg);
  at.store(v, arrays.exp_avg_sq);
}

template <typename Masters, typename Grad>
__global__ void __launch_bounds__(block_threads)
    adamw_kernel(Masters masters, Gradients<Grad> arrays, bool aligned, const Chunk* chunks,
                 const ParamScalars* scalars, const StepState* state) {
  const Chunk chunk = chunks[blockIdx.x];
  const float grad_scale = state->grad_scale;
  if (state->skip != 0) return;
  const ParamScalars s = scalars[chunk.param];
  if (s.stepped == 0) return;
  const std::size_t end = chunk.begin + chunk.count;
  for (std::size_t i = chunk.begin + 4 * threadIdx.x; i < end; i += 4 * block_threads) {
    at_quad(i, end, aligned && chunk.begin % 4 == 0, [&](auto at) { update_quad(at, masters, arrays, s, grad_scale); });
  }
}

/// Calls body(masters) with the form that `arrays` has.
template <typename Body>
void with_masters(const AdamWArrays& arrays, const Body& body) {
  auto* const master = static_cast<float*>(arrays.master);
  if (arrays.form == Master::none && arrays.dtype == DType::fp32) {
    body(ParamItself{static_cast<float*>(arrays.param)});
  } else if (arrays.form == Master::fp32 && arrays.dtype == DType::bf16) {
    body(BesideParam<Bf16>{static_cast<Bf16*>(arrays.param), master});
  } else if (arrays.form == Master::fp32 && arrays.dtype == DType::fp16) {
    body(BesideParam<Fp16>{static_cast<Fp16*>(arrays.param), master});
  } else if (arrays.form == Master::low16 && arrays.dtype == DType::bf16) {
    body(InTwoHalves{static_cast<std::uint16_t*>(arrays.param), static_cast<std::uint16_t*>(arrays.master)});
  } else {
    throw InvalidArgument("adamw: no master of this form goes with parameters of " +
                          std::string(name_of(arrays.dtype)) +
                          "; fp32 parameters are their own master, bf16 has fp32 or low16, fp16 has fp32");
  }
}

}  // namespace

void adamw(const AdamWArrays& arrays, const Chunk* chunks, std::size_t chunk_count, const ParamScalars* scalars,
           const StepState* state, Stream stream) {
  const bool aligned = aligned_to_16({arrays.param, arrays.master, arrays.grad, arrays.exp_avg, arrays.exp_avg_sq});
  with_masters(arrays, [&]<typename Masters>(const Masters& masters) {
    with_gradient_type(arrays.grad_dtype, [&]<typename Grad>(Grad) {
      if (chunk_count == 0) return;
      const Gradients<Grad> gradients{static_cast<const Grad*>(arrays.grad), arrays.exp_avg, arrays.exp_avg_sq};
      adamw_kernel<<<static_cast<unsigned>(chunk_count), block_threads, 0, native(stream)>>>(
          masters, gradients, aligned, chunks, scalars, state);
    });
  });
  check(cudaGetLastError(), "launch adamw");
}

}  // namespace aliquot::cuda
