/// \file
/// Where kernels find fp32 masters, and leave them.
#pragma once

#include <cstdint>
#include <string>

#include "aliquot/error.h"
#include "aliquot/kernels.h"
#include "aliquot/split_master.h"
#include "cuda/quads.h"

namespace aliquot::cuda {

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
    const uint2 h = at.load_bits(param), l = at.load_bits(low);
    return make_float4(joined<0>(h.x, l.x), joined<16>(h.x, l.x), joined<0>(h.y, l.y), joined<16>(h.y, l.y));
  }
  template <typename At>
  __device__ void store(At at, float4 v) const {
    at.store_bits(make_uint2(upper_halves(rounded_bits(v.x), rounded_bits(v.y)),
                             upper_halves(rounded_bits(v.z), rounded_bits(v.w))),
                  param);
    at.store_bits(make_uint2(lower_halves(v.x, v.y), lower_halves(v.z, v.w)), low);
  }

 private:
  // Two elements are a word all the way: of a ushort4 the compiler takes and cleans each by itself.
  template <unsigned shift>
  static __device__ float joined(std::uint32_t high, std::uint32_t low) {
    return join_master({static_cast<std::uint16_t>(high >> shift), static_cast<std::uint16_t>(low >> shift)});
  }
  static __device__ std::uint32_t upper_halves(std::uint32_t first, std::uint32_t second) {
    return __byte_perm(first, second, 0x7632);
  }
  static __device__ std::uint32_t lower_halves(float first, float second) {
    return __byte_perm(__float_as_uint(first), __float_as_uint(second), 0x5410);
  }
};

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

}  // namespace aliquot::cuda
