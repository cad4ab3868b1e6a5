/// \file
/// The element-wise work, on flat arrays of the host. Arithmetic is fp32. Each kernel reads and writes each element
/// once, picks AVX-512, AVX2 or plain code when the program runs, and gives the same bits on all three, for any
/// alignment and any number of threads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "aliquot/dtype.h"
#include "aliquot/rules.h"

namespace aliquot {

/// Square sum and count of non-finite elements of some gradients.
struct GradStatistics {
  double square_sum = 0;         ///< of the finite elements only
  std::uint64_t non_finite = 0;  ///< NaN and infinities

  friend bool operator==(const GradStatistics&, const GradStatistics&) = default;
  void operator+=(const GradStatistics& other) {
    square_sum += other.square_sum;
    non_finite += other.non_finite;
  }
};

/// destination = source, fp32, with stores that bypass the cache where that is faster (large arrays read later).
void copy(std::span<const float> source, float* destination);

/// to[i] = from[i], rounded to nearest even; what is too large becomes infinite, and NaN stays NaN.
void cast(const void* from, DType from_dtype, void* to, DType to_dtype, std::size_t count);

/// Whether a reduction adds to what is there or assigns.
enum class Accumulate : bool { no, yes };

/// The owner's half of a reduction: factor * (parts[0] + parts[1] + ...), added in that order in fp32 and multiplied in
/// fp32, into `result`: assigned, or added to what is there. Each part has result.size() elements; there is at least
/// one. Returns the statistics of the new `result`, the same as grad_statistics(result).
GradStatistics reduce(std::span<const float* const> parts, float factor, std::span<float> result,
                      Accumulate accumulate);

/// Square sum (fp64, in an order that depends on data.size() alone) and non-finite count.
GradStatistics grad_statistics(std::span<const float> data);

/// data *= factor
void scale(std::span<float> data, float factor);

/// Which step of a parameter it is, counted from 1, and what its gradient is multiplied with: the clip factor.
struct ParamStep {
  std::int64_t number = 1;
  float grad_scale = 1;
};

/// Where the fp32 value of a parameter is: it is the parameter itself, an array of its own, or the parameter (bf16)
/// and 16 more bits (split_master.h).
enum class Master { none, fp32, low16 };

/// Parameters and their masters.
struct Weights {
  void* param = nullptr;
  DType dtype = DType::fp32;  ///< fp32 with Master::none, bf16 or fp16 with Master::fp32, bf16 with Master::low16
  void* master = nullptr;     ///< float* or std::uint16_t*, as `form` says
  Master form = Master::none;
};

/// In the order of the rule's states; the others are empty.
using States = std::array<std::span<float>, max_states>;

/// One update of grad.size() masters and their states by `rule` (rules.h), in one pass. The parameters become the
/// numbers of their type that are nearest to the masters, by cast() or by split_master().
/// \throws InvalidArgument for another pair of dtype and form, states of another size, a step before the first, or a
/// rule that is Normed or Quantized
void update(const Rule& rule, const ParamStep& step, const Weights& weights, std::span<const float> grad,
            const States& states);

/// A state as codes (quantization.h): one for each element, and a scale for each block of them.
struct QuantizedState {
  std::span<std::uint8_t> codes;
  std::span<float> scales;
};
using QuantizedStates = std::array<QuantizedState, max_states>;

/// update() by a rule that is Quantized, of elements that begin where a block does. Each block is decoded, updated and
/// encoded while it is in the cache. The same errors.
void update(const Rule& rule, const ParamStep& step, const Weights& weights, std::span<const float> grad,
            const QuantizedStates& states);

/// Square sums of a parameter, or a part of one, and of the direction that a rule steps it in.
struct NormSquares {
  double param = 0;
  double direction = 0;

  friend bool operator==(const NormSquares&, const NormSquares&) = default;
  void operator+=(const NormSquares& other) {
    param += other.param;
    direction += other.direction;
  }
};

// The two passes of a rule that is Normed. The same arguments and errors as update().

/// The gradient goes into the states. Returns the sums that the ratio is of, fp64, added in an order that depends on
/// grad.size() alone.
NormSquares take(const Rule& rule, const ParamStep& step, const Weights& weights, std::span<const float> grad,
                 const States& states);
/// The masters go in their directions, by `ratio`.
void move(const Rule& rule, const ParamStep& step, float ratio, const Weights& weights, const States& states);

/// update() for parameters in fp32.
void update(const Rule& rule, const ParamStep& step, std::span<float> param, std::span<const float> grad,
            const States& states);

}  // namespace aliquot
