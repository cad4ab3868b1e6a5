#include "aliquot/loss_scale.h"

#include "aliquot/device_kernels.h"
#include "cuda/launch.h"

namespace aliquot::cuda {
namespace {

__global__ void update_kernel(LossScale* scale, ScaleRule rule) { *scale = scale->updated(rule); }

}  // namespace

void update_loss_scale(LossScale* scale, const ScaleRule& rule, Stream stream) {
  update_kernel<<<1, 1, 0, native(stream)>>>(scale, rule);
  check(cudaGetLastError(), "launch update_loss_scale");
}

}  // namespace aliquot::cuda
