// finish_report of device_kernels.h.
#include <algorithm>
#include <cmath>
#include <limits>

#include "aliquot/device_kernels.h"
#include "tests/simulated/streams.h"

namespace aliquot::cuda {
namespace {

struct Reports {
  ReportShape shape;
  const std::byte* all;

  std::size_t ranks() const { return static_cast<std::size_t>(shape.world_size); }
  const DeviceStatistics& of(std::size_t unit, std::size_t rank) const {
    return reinterpret_cast<const DeviceStatistics*>(all + rank * shape.bytes())[unit];
  }
  bool present(std::size_t param) const {
    bool any = false;
    for (std::size_t rank = 0; rank < ranks(); ++rank) {
      any |= all[rank * shape.bytes() + shape.present_offset() + param] != std::byte{0};
    }
    return any;
  }
};

/// Counts the bad elements, and returns the square sum of all others.
double judge(const Reports& reports, StepState& state) {
  double sum = 0;
  state.non_finite = 0;
  for (std::size_t unit = 0; unit < reports.shape.units; ++unit) {
    for (std::size_t rank = 0; rank < reports.ranks(); ++rank) {
      const DeviceStatistics& said = reports.of(unit, rank);
      sum += said.square_sum;
      if (said.non_finite != 0 && state.non_finite == 0) {
        state.bad_unit = unit;
        state.bad_rank = rank;
        state.bad_element = said.first_bad;
      }
      state.non_finite += said.non_finite;
    }
  }
  return sum;
}

void write_state(const Reports& reports, double max_norm, LossScale& scale, StepState& state) {
  const double norm = std::sqrt(judge(reports, state)) / scale.scale;
  state.skip = state.non_finite != 0 ? 1 : 0;
  state.norm = state.skip != 0 ? std::numeric_limits<double>::quiet_NaN() : norm;
  state.grad_scale = (max_norm > 0 ? clip_factor(norm, max_norm) : 1.0F) / scale.scale;
  ++(state.skip != 0 ? state.skipped : state.steps);
  state.skipped_in_a_row = state.skip != 0 ? state.skipped_in_a_row + 1 : 0;
  if (state.skip != 0) scale.overflow = 1;
}

}  // namespace

void finish_report(const Rule& rule, const ReportShape& shape, const std::byte* reports, const void* groups,
                   const int* group_of_param, std::int64_t* steps_of_param, double max_norm, LossScale* loss_scale,
                   StepState* state, void* scalars, Stream stream) {
  const auto finish = [=]<typename R>(const R&) {
    const Reports said{shape, reports};
    write_state(said, max_norm, *loss_scale, *state);
    for (std::size_t param = 0; param < shape.params; ++param) {
      const int group = group_of_param[param];
      auto& of_param = static_cast<ParamScalars<R>*>(scalars)[param];
      of_param = {};
      if (state->skip != 0 || group == no_group || !said.present(param)) continue;
      of_param = {1, static_cast<const R*>(groups)[group].scalars(++steps_of_param[param])};
    }
  };
  simulated::give(stream, [=] { std::visit(finish, rule); });
}

}  // namespace aliquot::cuda
