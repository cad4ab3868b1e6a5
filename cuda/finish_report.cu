#include <variant>

#include "aliquot/device_kernels.h"
#include "cuda/launch.h"

namespace aliquot::cuda {
namespace {

/// One block does it all: there are as many units and parameters as a model has, not as many as it has elements.
constexpr unsigned threads = 512;

struct Arguments {
  ReportShape shape;
  const std::byte* reports;
  const int* group_of_param;
  std::int64_t* steps_of_param;
  double max_norm;
  LossScale* loss_scale;
  StepState* state;

  __device__ const std::byte* report(std::size_t rank) const { return reports + rank * shape.bytes(); }
};

/// What all units of all ranks say together.
struct Sums {
  double square_sum;              ///< right in thread 0
  unsigned long long non_finite;  ///< these in all threads
  unsigned long long first_bad;   ///< index of unit and rank, ranks of a unit side by side
};

/// The squares are added one after the other, which fixes the order; that is fast only from shared memory, which they
/// are brought to in tiles.
__device__ Sums sums_of(const Arguments& a) {
  __shared__ double squares[threads];
  __shared__ unsigned long long non_finite, first_bad;
  if (threadIdx.x == 0) {
    non_finite = 0;
    first_bad = DeviceStatistics::none;
  }
  const std::size_t ranks = a.shape.world_size, count = a.shape.units * ranks;
  double sum = 0;
  for (std::size_t tile = 0; tile < count; tile += threads) {
    __syncthreads();
    const std::size_t index = tile + threadIdx.x;
    if (index < count) {
      const auto& said = reinterpret_cast<const DeviceStatistics*>(a.report(index % ranks))[index / ranks];
      squares[threadIdx.x] = said.square_sum;
      if (said.non_finite != 0) {
        atomicAdd(&non_finite, static_cast<unsigned long long>(said.non_finite));
        atomicMin(&first_bad, static_cast<unsigned long long>(index));
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      for (std::size_t i = 0; i < threads && tile + i < count; ++i) sum += squares[i];
    }
  }
  __syncthreads();
  return {sum, non_finite, first_bad};
}

/// clip_factor() of optimizer.h.
__device__ float clip(double norm, double max_norm) {
  return max_norm > 0 ? static_cast<float>(fmin(1.0, max_norm / (norm + 1e-6))) : 1.0F;
}

__device__ void write_state(const Arguments& a, const Sums& sums) {
  StepState& state = *a.state;
  const float scale = a.loss_scale->scale;
  const double norm = sqrt(sums.square_sum) / scale;
  state.skip = sums.non_finite != 0 ? 1 : 0;
  state.norm = state.skip != 0 ? nan("") : norm;
  state.grad_scale = clip(norm, a.max_norm) / scale;
  state.non_finite = sums.non_finite;
  if (state.skip == 0) {
    ++state.steps;
    state.skipped_in_a_row = 0;
    return;
  }
  a.loss_scale->overflow = 1;
  ++state.skipped;
  ++state.skipped_in_a_row;
  const std::size_t ranks = a.shape.world_size;
  state.bad_unit = sums.first_bad / ranks;
  state.bad_rank = sums.first_bad % ranks;
  state.bad_element = reinterpret_cast<const DeviceStatistics*>(a.report(state.bad_rank))[state.bad_unit].first_bad;
}

__device__ bool present_on_any_rank(const Arguments& a, std::size_t param) {
  bool present = false;
  for (int rank = 0; rank < a.shape.world_size; ++rank) {
    present |= a.report(rank)[a.shape.present_offset() + param] != std::byte{0};
  }
  return present;
}

template <typename R>
__global__ void finish_report_kernel(Arguments a, const R* groups, ParamScalars<R>* scalars) {
  const Sums sums = sums_of(a);
  if (threadIdx.x == 0) write_state(a, sums);
  for (std::size_t param = threadIdx.x; param < a.shape.params; param += threads) {
    const int group = a.group_of_param[param];
    const bool stepped = sums.non_finite == 0 && group != no_group && present_on_any_rank(a, param);
    scalars[param] = {};
    if (stepped) scalars[param] = {1, groups[group].scalars(++a.steps_of_param[param])};
  }
}

}  // namespace

void finish_report(const Rule& rule, const ReportShape& shape, const std::byte* reports, const void* groups,
                   const int* group_of_param, std::int64_t* steps_of_param, double max_norm, LossScale* loss_scale,
                   StepState* state, void* scalars, Stream stream) {
  const Arguments arguments{shape, reports, group_of_param, steps_of_param, max_norm, loss_scale, state};
  std::visit(
      [&]<typename R>(const R&) {
        finish_report_kernel<<<1, threads, 0, native(stream)>>>(arguments, static_cast<const R*>(groups),
                                                                static_cast<ParamScalars<R>*>(scalars));
      },
      rule);
  check(cudaGetLastError(), "launch finish_report");
}

}  // namespace aliquot::cuda
