/// \file
/// The kernels of a device. Each call gives its work to `stream` and returns; pointers are device memory unless said
/// otherwise. 16-byte aligned arrays are the fast case, any alignment of whole elements is right. Arithmetic on fp32
/// gives the bits of kernels.h: no fused multiply-add, sums in the order of the ranks.
/// All \throws DeviceError if the work could not be launched, or in a build without CUDA.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "aliquot/device.h"
#include "aliquot/dtype.h"
#include "aliquot/kernels.h"
#include "aliquot/loss_scale.h"
#include "aliquot/optimizer.h"
#include "aliquot/partition.h"
#include "aliquot/quantization.h"
#include "aliquot/rules.h"

namespace aliquot::cuda {

/// A contiguous array of a parameter's numel; null: there is none.
struct PackSource {
  const void* data = nullptr;
  DType dtype = DType::fp32;
};

/// full[0, layout.numel()) = the flat unit of `sources` (one per parameter, in host memory; read during the call),
/// rounded to `full_dtype`; zero in the padding and where there is none. present[p] |= 1 where there is one, unless
/// `present` is null.
void pack(const Layout& layout, std::span<const PackSource> sources, void* full, DType full_dtype,
          std::uint8_t* present, Stream stream);

/// to[i] = from[i], rounded to nearest even.
void cast(const void* from, DType from_dtype, void* to, DType to_dtype, std::size_t count, Stream stream);

/// data[i] *= *factor, in fp32, rounded to nearest even: a factor worked out on the device never visits the host.
/// \throws InvalidArgument if the gradients are neither fp32 nor bf16; so do all that follow
void scale(void* data, DType dtype, std::size_t count, const float* factor, Stream stream);

/// GradStatistics on the device, and where the trouble begins.
struct DeviceStatistics {
  static constexpr std::uint64_t none = ~std::uint64_t{0};

  double square_sum = 0;           ///< of the finite elements; added in an order that depends on the count alone
  std::uint64_t non_finite = 0;    ///< NaN and infinities
  std::uint64_t first_bad = none;  ///< index of the first of them

  friend bool operator==(const DeviceStatistics&, const DeviceStatistics&) = default;
};

/// Bytes of workspace, whatever the count. Zero it once; then any number of calls may use it, one after the other.
std::size_t reduce_workspace_bytes();

/// result (+)= factor * (parts[0] + parts[1] + ...), in this order, in fp32, then rounded to nearest even once;
/// statistics of the new result as it is stored. `parts` (host memory; at least one, at most max_parts) point to
/// `count` elements each.
inline constexpr std::size_t max_parts = 1024;
void reduce(std::span<const void* const> parts, DType dtype, float factor, void* result, DType result_dtype,
            std::size_t count, Accumulate accumulate, DeviceStatistics* statistics, void* workspace, Stream stream);

/// The same, to the bit, for parts of which some lie in memory of peers: as fast as the link, and on few of the
/// multiprocessors, so that others compute beside it. Only square_sum is added in an order of its own.
void pull_and_reduce(std::span<const void* const> parts, DType dtype, float factor, void* result, DType result_dtype,
                     std::size_t count, Accumulate accumulate, DeviceStatistics* statistics, void* workspace,
                     Stream stream);

/// bf16 gives the bits that the same values give in fp32; both give what reduce() leaves.
void grad_statistics(const void* data, DType dtype, std::size_t count, DeviceStatistics* statistics, void* workspace,
                     Stream stream);

/// What the ranks tell one another before a step: DeviceStatistics of each unit, then one byte per parameter of all
/// units, 1 where it had a gradient.
struct ReportShape {
  std::size_t units = 0;
  std::size_t params = 0;
  int world_size = 1;

  constexpr std::size_t present_offset() const { return units * sizeof(DeviceStatistics); }
  /// Of one rank's report.
  constexpr std::size_t bytes() const { return (present_offset() + params + 15) / 16 * 16; }
};

/// What one parameter's update by a rule needs besides the clip factor. On the device.
template <typename R>
struct alignas(16) ParamScalars {
  std::uint32_t stepped = 0;  ///< 0: the parameter is left alone in this step
  typename R::Scalars of_rule;
};

/// What came out of the ranks' reports. On the device; zeroed before the first step.
struct StepState {
  double norm = 0;               ///< of the unscaled gradients, before clipping; NaN if one is not finite
  float grad_scale = 1;          ///< the clip factor over the loss scale
  std::uint32_t skip = 0;        ///< 1: a gradient was not finite, nothing is stepped
  std::uint64_t non_finite = 0;  ///< elements, over all ranks
  std::uint64_t steps = 0;       ///< that were not skipped
  std::uint64_t skipped = 0;
  std::uint64_t skipped_in_a_row = 0;
  std::uint64_t bad_unit = 0;  ///< the first bad element of the last skipped step: unit, then rank,
  std::uint64_t bad_rank = 0;
  std::uint64_t bad_element = 0;  ///< then element of that rank's shard
};

/// Reads the world_size `reports`, one after the other, and leaves the step's scalars. A parameter is stepped, and its
/// step counted, if it has a group, any rank reports a gradient and no gradient is bad. Square sums are added over
/// units, within a unit over ranks.
/// \param rule            says of which kind `groups` and `scalars` are
/// \param groups          hyperparameters, by group: of the alternative that `rule` holds
/// \param group_of_param  shape.params of them; no_group: never stepped
/// \param steps_of_param  shape.params counters, zeroed before the first step
/// \param max_norm        what gradients are clipped to, as clip_factor() has it; not positive: unclipped
/// \param loss_scale      what the gradients are multiples of; its `overflow` is set if the step is skipped
/// \param scalars         shape.params ParamScalars of that alternative, written
void finish_report(const Rule& rule, const ReportShape& shape, const std::byte* reports, const void* groups,
                   const int* group_of_param, std::int64_t* steps_of_param, double max_norm, LossScale* loss_scale,
                   StepState* state, void* scalars, Stream stream);

/// *scale = scale->updated(rule)
void update_loss_scale(LossScale* scale, const ScaleRule& rule, Stream stream);

/// A piece of one parameter: what one block of threads steps.
struct Chunk {
  std::uint64_t begin = 0;  ///< relative to what the rank holds
  std::uint32_t count = 0;
  std::uint32_t param = 0;  ///< index into the unit's parameters

  friend bool operator==(const Chunk&, const Chunk&) = default;
};

inline constexpr std::size_t chunk_size = 4096;
static_assert(chunk_size % quantization_block == 0);

/// The parameters' parts in `held` (which begins and ends at multiples of Layout::alignment), cut to chunk_size.
std::vector<Chunk> chunks_of(const Layout& layout, Range held);

/// What the update of a unit works on.
struct UnitUpdate {
  Weights weights;  ///< what the rank holds, by role: these, and
  const void* grad = nullptr;
  DType grad_dtype = DType::fp32;           ///< or bf16
  std::array<float*, max_states> states{};  ///< in the order of the rule's; or where that is Quantized
  std::array<std::uint8_t*, max_states> codes{};
  std::array<float*, max_states> scales{};  ///< of all blocks that the rank holds, at their scale_slot()s
  std::size_t shard_numel = 0;
  const Chunk* chunks = nullptr;
  std::size_t chunk_count = 0;
  const void* scalars = nullptr;  ///< ParamScalars of the rule, of this unit's parameters
  const StepState* state = nullptr;
};

/// update() of kernels.h over a unit, in one pass: elements of the chunks whose parameter is stepped, unless the step
/// is skipped; all others are left alone. `rule` says which rule it is. The chunks of a Quantized one begin where
/// blocks do, as those of chunks_of() of a shard do.
/// \throws InvalidArgument for another pair of dtype and form, another grad_dtype, or a rule that is Normed
void update(const Rule& rule, const UnitUpdate& unit, Stream stream);

// The two passes of a rule that is Normed. The same arguments and errors as update().

/// take() of kernels.h. of_chunks[i] = the sums of chunk i, zeros where nothing is stepped.
void take(const Rule& rule, const UnitUpdate& unit, NormSquares* of_chunks, Stream stream);
/// move() of kernels.h, each parameter by its own of `ratios`.
void move(const Rule& rule, const UnitUpdate& unit, const float* ratios, Stream stream);

/// Chunks side by side.
struct ChunkSpan {
  std::uint32_t first = 0;
  std::uint32_t count = 0;
};
/// sums[i] = the sums of the chunks of spans[i], in an order that depends on their number alone.
void sum_norms(const NormSquares* of_chunks, const ChunkSpan* spans, std::size_t span_count, NormSquares* sums,
               Stream stream);
/// ratios[p] = trust_ratio() of sums[p] + sums[param_count + p] + ..., `parts` in all.
void trust_ratios(const NormSquares* sums, std::size_t param_count, std::size_t parts, float* ratios, Stream stream);

/// param[i], low[i] = the halves of master[i] (split_master.h).
void split_masters(const float* master, void* param, std::uint16_t* low, std::size_t count, Stream stream);

}  // namespace aliquot::cuda
