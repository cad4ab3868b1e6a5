/// \file
/// One table of kernels per instruction set. The functions work on the caller's thread, on one piece of an array.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <variant>

#include "aliquot/kernels.h"

namespace aliquot::cpu {

/// Elements whose squares are added in 16 fp64 lanes; the sums of blocks are then added in order. A constant of the
/// numerics: another value is another rounding of the gradient norm.
inline constexpr std::size_t block_size = 16384;

/// The arguments of one reduce().
struct Reduction {
  const float* const* parts;
  std::size_t part_count;  ///< at least 1
  float factor;
  float* result;
};

/// Elements of 16 bits, by what the bits mean.
struct Bf16 {
  std::uint16_t bits;
};
struct Fp16 {
  std::uint16_t bits;
};

/// The arrays of one update(): `master` is what the table's entry says, or nothing.
struct WeightArrays {
  void* param;
  void* master;
  const float* grad;
};
struct UpdateArrays : WeightArrays {
  float* states[max_states];
};
struct QuantizedArrays : WeightArrays {
  std::uint8_t* codes[max_states];
  float* scales[max_states];
};

/// One kernel, by where the masters are.
template <typename Kernel>
struct Forms {
  Kernel fp32;
  Kernel bf16;   ///< master: float*
  Kernel fp16;   ///< master: float*
  Kernel split;  ///< bf16; master: std::uint16_t*, the lower halves
};

/// The kernels of one rule.
template <typename R>
struct Updates {
  using Update = void (*)(const typename R::Scalars& scalars, float grad_scale, const UpdateArrays& arrays,
                          std::size_t count);
  Forms<Update> update;
};
template <Quantized R>
struct Updates<R> {
  using Update = void (*)(const typename R::Scalars& scalars, float grad_scale, const QuantizedArrays& arrays,
                          std::size_t count);  ///< at most quantization_block elements
  Forms<Update> update;
};
template <Normed R>
struct Updates<R> {
  using Take = NormSquares (*)(const typename R::Scalars& scalars, float grad_scale, const UpdateArrays& arrays,
                               std::size_t count);  ///< at most block_size elements
  using Move = void (*)(const typename R::Scalars& scalars, float ratio, const UpdateArrays& arrays, std::size_t count);
  Forms<Take> take;
  Forms<Move> move;
};

/// Updates of each rule that `Rules` may hold.
template <typename Rules>
struct UpdatesOf;
template <typename... Rules>
struct UpdatesOf<std::variant<Rules...>> {
  std::tuple<Updates<Rules>...> by_rule;
};

/// `count` elements from the pointers on; [begin, end) where a struct holds whole arrays. Functions that return
/// statistics take at most block_size elements. `past_cache`: with stores that bypass the cache;
/// reduce_assign_past_cache needs a `result` aligned to 64 bytes and a `begin` that is a multiple of 16.
struct KernelTable {
  void (*copy)(const float* source, float* destination, std::size_t count);
  void (*copy_past_cache)(const float* source, float* destination, std::size_t count);
  void (*scale)(float* data, std::size_t count, float factor);
  GradStatistics (*statistics)(const float* data, std::size_t count);
  GradStatistics (*reduce_assign)(const Reduction& reduction, std::size_t begin, std::size_t end);
  GradStatistics (*reduce_assign_past_cache)(const Reduction& reduction, std::size_t begin, std::size_t end);
  GradStatistics (*reduce_add)(const Reduction& reduction, std::size_t begin, std::size_t end);
  UpdatesOf<Rule> updates;
  using Cast = void (*)(const void* from, void* to, std::size_t count);
  Cast cast[3][3];  ///< [from][to], by the numbers of DType
};

extern const KernelTable plain_table;   // the oracle
extern const KernelTable avx2_table;    // x86-64 builds only
extern const KernelTable avx512_table;  // x86-64 builds only

enum class Isa { plain, avx2, avx512 };

/// Whether this build holds the kernels and this machine can run them.
bool supported(Isa isa) noexcept;

/// \throws InvalidArgument if `isa` is not supported
const KernelTable& table_for(Isa isa);

/// The fastest that is supported.
Isa best_isa() noexcept;

/// What the functions of kernels.h use: at start that of best_isa().
const KernelTable& current_table();

/// Changes current_table(), for tests and benchmarks.
/// \throws InvalidArgument if `isa` is not supported
void use(Isa isa);

}  // namespace aliquot::cpu
