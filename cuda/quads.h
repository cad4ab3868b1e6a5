/// \file
/// Elements in fours: what a thread reads and writes at a time. A warp then touches 512 bytes of fp32 side by side.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "aliquot/dtype.h"
#include "aliquot/error.h"

namespace aliquot::cuda {

using Bf16 = __nv_bfloat16;
using Fp16 = __half;

/// Calls body(T{}), T being the type of `dtype`'s elements.
template <typename Body>
__host__ __device__ void with_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::fp32: return body(float{});
    case DType::bf16: return body(Bf16{});
    case DType::fp16: return body(Fp16{});
  }
}

/// The same for what gradients are kept in. \throws InvalidArgument for another type
template <typename Body>
void with_gradient_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::fp32: return body(float{});
    case DType::bf16: return body(Bf16{});
    case DType::fp16: break;
  }
  throw InvalidArgument("gradients of a device are kept in fp32 or bf16, not in " + std::string(name_of(dtype)));
}

inline __device__ float to_float(float value) { return value; }
inline __device__ float to_float(Bf16 value) { return __bfloat162float(value); }
inline __device__ float to_float(Fp16 value) { return __half2float(value); }

template <typename T>
__device__ T rounded(float value);
template <>
inline __device__ float rounded<float>(float value) {
  return value;
}
template <>
inline __device__ Bf16 rounded<Bf16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
inline __device__ Fp16 rounded<Fp16>(float value) {
  return __float2half_rn(value);
}

/// Four elements as they lie in memory, moved by one instruction.
template <typename T>
struct Bits {
  using Type = uint2;
};
template <>
struct Bits<float> {
  using Type = float4;
};

inline __device__ float4 unpack(const float*, float4 bits) { return bits; }
inline __device__ float4 unpack(const Bf16*, uint2 bits) {
  const auto upper = [](unsigned word) { return __uint_as_float(word & 0xFFFF0000); };
  return make_float4(upper(bits.x << 16), upper(bits.x), upper(bits.y << 16), upper(bits.y));
}
template <typename T>
__device__ float4 unpack(const T*, uint2 bits) {
  const T* const elements = reinterpret_cast<const T*>(&bits);
  return make_float4(to_float(elements[0]), to_float(elements[1]), to_float(elements[2]), to_float(elements[3]));
}

template <typename Pair>
__device__ uint2 bits_of(Pair first, Pair second) {
  return make_uint2(reinterpret_cast<const unsigned&>(first), reinterpret_cast<const unsigned&>(second));
}
inline __device__ float4 pack_as(const float*, float4 v) { return v; }
inline __device__ uint2 pack_as(const Bf16*, float4 v) {
  return bits_of(__floats2bfloat162_rn(v.x, v.y), __floats2bfloat162_rn(v.z, v.w));
}
inline __device__ uint2 pack_as(const Fp16*, float4 v) {
  return bits_of(__floats2half2_rn(v.x, v.y), __floats2half2_rn(v.z, v.w));
}

/// What is left of `v` in an array of T.
template <typename T>
__device__ float4 stored_as(const T* array, float4 v) {
  return unpack(array, pack_as(array, v));
}

/// One instruction, by name: of several stores in a row nvcc 13 splits the first.
inline __device__ void store_at_once(float4 v, float4* to) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "f"(v.x), "f"(v.y),
               "f"(v.z), "f"(v.w)
               : "memory");
}
inline __device__ void store_at_once(uint2 v, uint2* to) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(v.x), "r"(v.y) : "memory");
}

/// Four elements, `begin` elements into any array that is aligned to 16 bytes; begin is a multiple of 4.
struct Whole {
  std::size_t begin;

  /// Of an array that the kernel writes to.
  template <typename T>
  __device__ float4 load(const T* array) const {
    return unpack(array, *at(array));
  }
  /// Of one that it does not.
  template <typename T>
  __device__ float4 read(const T* array) const {
    return unpack(array, __ldg(at(array)));
  }
  template <typename T>
  __device__ void store(float4 v, T* array) const {
    store_at_once(pack_as(array, v), const_cast<typename Bits<T>::Type*>(at(array)));
  }
  /// Of 16-bit elements that are no numbers: two to a word, the first of them lower.
  __device__ uint2 load_bits(const std::uint16_t* array) const {
    return *reinterpret_cast<const uint2*>(array + begin);
  }
  __device__ void store_bits(uint2 v, std::uint16_t* array) const { *reinterpret_cast<uint2*>(array + begin) = v; }
  /// Of 8-bit ones: four to a word.
  __device__ std::uint32_t load_codes(const std::uint8_t* array) const {
    return *reinterpret_cast<const std::uint32_t*>(array + begin);
  }
  __device__ void store_codes(std::uint32_t v, std::uint8_t* array) const {
    *reinterpret_cast<std::uint32_t*>(array + begin) = v;
  }

 private:
  template <typename T>
  __device__ const typename Bits<T>::Type* at(const T* array) const {
    return reinterpret_cast<const typename Bits<T>::Type*>(array + begin);
  }
};

/// The first `count` (at most 4) of them in an array of any alignment; the others are zeros and not stored.
struct Part {
  std::size_t begin;
  unsigned count;

  template <typename T>
  __device__ float4 load(const T* array) const {
    const auto at = [&](unsigned i) { return i < count ? to_float(array[begin + i]) : 0.0F; };
    return make_float4(at(0), at(1), at(2), at(3));
  }
  template <typename T>
  __device__ float4 read(const T* array) const {
    return load(array);
  }
  template <typename T>
  __device__ void store(float4 v, T* array) const {
    const float values[] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      if (i < count) array[begin + i] = rounded<T>(values[i]);
    }
  }
  __device__ uint2 load_bits(const std::uint16_t* array) const {
    const auto at = [&](unsigned i) { return i < count ? std::uint32_t{array[begin + i]} << (16 * (i % 2)) : 0; };
    return make_uint2(at(0) | at(1), at(2) | at(3));
  }
  __device__ void store_bits(uint2 v, std::uint16_t* array) const {
    const std::uint32_t words[] = {v.x, v.y};
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      if (i < count) array[begin + i] = static_cast<std::uint16_t>(words[i / 2] >> (16 * (i % 2)));
    }
  }
  __device__ std::uint32_t load_codes(const std::uint8_t* array) const {
    const auto at = [&](unsigned i) { return i < count ? std::uint32_t{array[begin + i]} << (8 * i) : 0; };
    return at(0) | at(1) | at(2) | at(3);
  }
  __device__ void store_codes(std::uint32_t v, std::uint8_t* array) const {
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      if (i < count) array[begin + i] = static_cast<std::uint8_t>(v >> (8 * i));
    }
  }
};

/// body(at) for the quad of elements [begin, begin + 4), of which those before `end` are there.
template <typename Body>
__device__ void at_quad(std::size_t begin, std::size_t end, bool aligned, const Body& body) {
  if (aligned && begin + 4 <= end) {
    body(Whole{begin});
  } else {
    body(Part{begin, begin + 4 <= end ? 4U : static_cast<unsigned>(end - begin)});
  }
}

/// Loads of quads that a thread should have under way, 64 bytes in all: it takes some 30 KB per multiprocessor to keep
/// the memory busy.
template <typename T>
inline constexpr unsigned quads_under_way = 16 / sizeof(T);

/// then(at, load(at)) for whole quads from `begin` on, `stride` apart, in rounds of `unroll`: their loads all come
/// before the first `then`. What is left goes in smaller rounds. Returns the first quad that is not whole.
template <unsigned unroll, typename Load, typename Then>
__device__ std::size_t in_rounds(std::size_t begin, std::size_t stride, std::size_t count, const Load& load,
                                 const Then& then) {
  for (; begin + (unroll - 1) * stride + 4 <= count; begin += unroll * stride) {
    float4 values[unroll];
#pragma unroll
    for (unsigned u = 0; u < unroll; ++u) values[u] = load(Whole{begin + u * stride});
#pragma unroll
    for (unsigned u = 0; u < unroll; ++u) then(Whole{begin + u * stride}, values[u]);
  }
  if constexpr (unroll > 1) begin = in_rounds<unroll / 2>(begin, stride, count, load, then);
  return begin;
}

/// then(at, load(at)) for all quads of [0, count), by the whole grid; `unroll` loads come before the first `then`. A
/// thread meets the same quads in the same order whatever `unroll` is and however the arrays are aligned.
template <unsigned unroll, typename Load, typename Then>
__device__ void for_quads(std::size_t count, bool aligned, const Load& load, const Then& then) {
  const std::size_t stride = 4 * std::size_t{gridDim.x} * blockDim.x;
  std::size_t begin = 4 * (std::size_t{blockIdx.x} * blockDim.x + threadIdx.x);
  if (aligned) begin = in_rounds<unroll>(begin, stride, count, load, then);
  for (; begin < count; begin += stride) at_quad(begin, count, false, [&](auto at) { then(at, load(at)); });
}

}  // namespace aliquot::cuda
