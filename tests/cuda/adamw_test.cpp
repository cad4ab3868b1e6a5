#include <array>
#include <cmath>

#include "aliquot/device_kernels.h"
#include "aliquot/kernels.h"
#include "aliquot/split_master.h"
#include "tests/cuda/device_test.h"

namespace aliquot::test {
namespace {

using cuda::Chunk;
using cuda::Master;
using cuda::ParamScalars;
using cuda::StepState;

struct Form {
  DType dtype;
  Master master;
  DType grad = DType::fp32;
};

/// Parameter 2 has no gradient, parameter 5 no group.
const std::vector<std::size_t> numels{5, 16, 4000, 0, 10'001, 77, 1, 30'000, 3, 8192, 4097};
constexpr float grad_scale = 0.75F;

bool is_stepped(std::size_t param) { return param != 2 && param != 5; }

AdamWStep step_of(std::size_t param, int step) {
  return {.lr = 1e-2 / static_cast<double>(param + 1),
          .beta1 = 0.9,
          .beta2 = 0.95,
          .eps = 1e-8,
          .weight_decay = param % 2 == 0 ? 0.1 : 0.0,
          .step = step + static_cast<int>(param),
          .grad_scale = grad_scale};
}

/// As kernels.cpp works them out.
ParamScalars scalars_of(std::size_t param, int step) {
  if (!is_stepped(param)) return {};
  const AdamWStep s = step_of(param, step);
  const auto correction = [&](double beta) { return 1 - std::pow(beta, static_cast<double>(s.step)); };
  return {.stepped = 1,
          .decay = static_cast<float>(1 - s.lr * s.weight_decay),
          .one_minus_beta1 = static_cast<float>(1 - s.beta1),
          .beta2 = static_cast<float>(s.beta2),
          .one_minus_beta2 = static_cast<float>(1 - s.beta2),
          .inverse_correction2 = static_cast<float>(1 / std::sqrt(correction(s.beta2))),
          .eps = static_cast<float>(s.eps),
          .minus_step_size = static_cast<float>(-s.lr / correction(s.beta1))};
}

/// What one rank holds of a unit, in fp32 on the host.
struct Arrays {
  std::vector<float> master, grad, exp_avg, exp_avg_sq;

  explicit Arrays(std::size_t count)
      : master(numbers(count, 1)), grad(numbers(count, 2)), exp_avg(numbers(count, 3)), exp_avg_sq(numbers(count, 4)) {
    for (float& value : exp_avg_sq) value *= value;
    for (std::size_t i = 0; i < count; i += 100) grad[i] = exp_avg[i] = exp_avg_sq[i] = 0;  // never had a gradient
  }
};

void step_on_host(Arrays& arrays, const Layout& layout, Range held, int step) {
  for (const Segment& segment : layout.segments(held)) {
    if (!is_stepped(segment.param)) continue;
    const auto part = [&](std::vector<float>& of) {
      return std::span(of).subspan(segment.range.begin - held.begin, segment.range.size());
    };
    adamw(step_of(segment.param, step), part(arrays.master), part(arrays.grad), part(arrays.exp_avg),
          part(arrays.exp_avg_sq));
  }
}

std::vector<std::byte> low_halves(const std::vector<float>& masters) {
  std::vector<std::byte> bytes(masters.size() * 2);
  for (std::size_t i = 0; i < masters.size(); ++i) {
    const std::uint16_t low = split_master(masters[i]).low;
    std::memcpy(&bytes[2 * i], &low, 2);
  }
  return bytes;
}

std::vector<std::byte> high_halves(const std::vector<float>& masters) {
  std::vector<std::byte> bytes(masters.size() * 2);
  for (std::size_t i = 0; i < masters.size(); ++i) {
    const std::uint16_t high = split_master(masters[i]).high;
    std::memcpy(&bytes[2 * i], &high, 2);
  }
  return bytes;
}

/// What `form` keeps of the masters: the parameter's bytes, then those of the master's array.
std::pair<std::vector<std::byte>, std::vector<std::byte>> stored(const std::vector<float>& masters, Form form) {
  switch (form.master) {
    case Master::none: return {encoded(masters, DType::fp32), {}};
    case Master::fp32: return {encoded(masters, form.dtype), encoded(masters, DType::fp32)};
    case Master::low16: return {high_halves(masters), low_halves(masters)};
  }
  return {};
}

class CudaAdamW : public OnDeviceWith<Form> {
 protected:
  CudaAdamW() : layout_(unit(), 3) {}

  /// Steps what rank holds on the device and on the host and compares every byte after every step.
  void expect_steps(int rank, std::size_t offset, bool skip) {
    const Range held = layout_.shard(rank);
    Arrays host(held.size());
    const auto [param_bytes, master_bytes] = stored(host.master, GetParam());
    const std::size_t master_size = GetParam().master == Master::low16 ? 2 : 4;
    const DeviceArray<std::byte> param(param_bytes, stream(), offset * size_of(GetParam().dtype));
    const DeviceArray<std::byte> master(master_bytes, stream(), offset * master_size);
    const DeviceArray<float> exp_avg(host.exp_avg, stream(), offset), exp_avg_sq(host.exp_avg_sq, stream(), offset);
    const DeviceArray<StepState> state = one_of(StepState{.grad_scale = grad_scale, .skip = skip ? 1U : 0U}, stream());
    const std::vector<Chunk> plan = cuda::chunks_of(layout_, held);
    const DeviceArray<Chunk> chunks(plan, stream());
    for (int step = 1; step <= 3; ++step) {
      host.grad = numbers(held.size(), 10 + static_cast<std::uint32_t>(step), GetParam().grad);
      const std::vector<std::byte> grad_bytes = encoded(host.grad, GetParam().grad);
      const DeviceArray<std::byte> grad(grad_bytes, stream(), offset * size_of(GetParam().grad));
      const DeviceArray<ParamScalars> scalars(all_scalars(step), stream());
      cuda::adamw({param.data(), GetParam().dtype, master_bytes.empty() ? nullptr : master.data(), GetParam().master,
                   grad.data(), GetParam().grad, exp_avg.data(), exp_avg_sq.data()},
                  chunks.data(), plan.size(), scalars.data(), state.data(), stream());
      if (!skip) step_on_host(host, layout_, held, step);
      const auto [expected_param, expected_master] = stored(host.master, GetParam());
      // A parameter that is not stepped keeps its bytes, and they were stored() from the start.
      EXPECT_TRUE(same_bits(param.values(), expected_param)) << "step " << step;
      EXPECT_TRUE(same_bits(master.values(), expected_master)) << "step " << step;
      EXPECT_TRUE(same_bits(exp_avg.values(), host.exp_avg)) << "step " << step;
      EXPECT_TRUE(same_bits(exp_avg_sq.values(), host.exp_avg_sq)) << "step " << step;
      EXPECT_TRUE(same_bits(grad.values(), grad_bytes)) << "step " << step;
    }
  }

 private:
  static UnitSpec unit() {
    UnitSpec unit{.name = "unit", .params = {}};
    for (const std::size_t numel : numels) unit.params.push_back({"param", numel});
    return unit;
  }
  static std::vector<ParamScalars> all_scalars(int step) {
    std::vector<ParamScalars> scalars;
    for (std::size_t param = 0; param < numels.size(); ++param) scalars.push_back(scalars_of(param, step));
    return scalars;
  }

  Layout layout_;
};

TEST_P(CudaAdamW, GivesTheHostsBits) {
  for (int rank = 0; rank < 3; ++rank) expect_steps(rank, 0, false);
}

TEST_P(CudaAdamW, TakesAnyAlignment) { expect_steps(1, 1, false); }

TEST_P(CudaAdamW, TouchesNothingInASkippedStep) { expect_steps(1, 0, true); }

constexpr std::array all_forms{Form{DType::fp32, Master::none},
                               Form{DType::bf16, Master::fp32},
                               Form{DType::fp16, Master::fp32},
                               Form{DType::bf16, Master::low16},
                               Form{DType::fp32, Master::none, DType::bf16},
                               Form{DType::bf16, Master::fp32, DType::bf16},
                               Form{DType::fp16, Master::fp32, DType::bf16},
                               Form{DType::bf16, Master::low16, DType::bf16}};

std::string name_of_case(const testing::TestParamInfo<Form>& info) {
  const std::array forms{"_alone", "_with_fp32_master", "_with_low16_master"};
  return std::string(name_of(info.param.dtype)) + forms[static_cast<std::size_t>(info.param.master)] + "_" +
         std::string(name_of(info.param.grad)) + "_gradient";
}

INSTANTIATE_TEST_SUITE_P(Forms, CudaAdamW, testing::ValuesIn(all_forms), name_of_case);

using CudaAdamWArguments = OnDevice;

TEST_F(CudaAdamWArguments, AreFormsThatExist) {
  for (const Form form :
       {Form{DType::fp32, Master::low16}, Form{DType::fp32, Master::fp32}, Form{DType::bf16, Master::none},
        Form{DType::fp16, Master::low16}, Form{DType::fp32, Master::none, DType::fp16}}) {
    EXPECT_THROW(cuda::adamw({.dtype = form.dtype, .form = form.master, .grad_dtype = form.grad}, nullptr, 0, nullptr,
                             nullptr, stream()),
                 InvalidArgument);
  }
}

TEST_F(CudaAdamWArguments, MayBeAShardWithoutParameters) {
  cuda::adamw({}, nullptr, 0, nullptr, nullptr, stream());
  cuda::adamw({.grad_dtype = DType::bf16}, nullptr, 0, nullptr, nullptr, stream());
  synchronize(stream());
}

}  // namespace
}  // namespace aliquot::test
