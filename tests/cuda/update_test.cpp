#include <array>
#include <tuple>
#include <variant>

#include "aliquot/device_kernels.h"
#include "aliquot/kernels.h"
#include "tests/cpp/rules.h"
#include "tests/cuda/device_test.h"
#include "tests/cuda/update_forms.h"

namespace aliquot::test {
namespace {

using cuda::Chunk;
using cuda::StepState;

/// What one rank holds of a unit, in fp32 on the host.
struct Arrays {
  std::vector<float> master, grad, first, second;

  explicit Arrays(std::size_t count)
      : master(numbers(count, 1)), grad(numbers(count, 2)), first(numbers(count, 3)), second(numbers(count, 4)) {
    for (std::vector<float>* state : {&first, &second}) {
      for (float& value : *state) value *= value;  // some rules take the root of it
    }
    for (std::size_t i = 0; i < count; i += 100) grad[i] = first[i] = second[i] = 0;  // never had a gradient
  }
};

/// `ratios` of the device, by parameter, are those that a Normed rule steps by: they must be near the host's, whose
/// norms are added in another order.
void step_on_host(const Rule& rule, Arrays& arrays, const Layout& layout, Range held, int step,
                  const std::vector<float>& ratios) {
  for (const Segment& segment : layout.segments(held)) {
    if (!is_stepped(segment.param)) continue;
    const auto part = [&](std::vector<float>& of) {
      return std::span(of).subspan(segment.range.begin - held.begin, segment.range.size());
    };
    const ParamStep at = param_step(segment.param, step);
    const Weights masters{.param = part(arrays.master).data()};
    const States states{part(arrays.first), part(arrays.second)};
    if (!is_normed(rule)) {
      update(rule, at, masters, part(arrays.grad), states);
      continue;
    }
    const NormSquares squares = take(rule, at, masters, part(arrays.grad), states);
    EXPECT_FLOAT_EQ(trust_ratio(squares.param, squares.direction), ratios[segment.param]);
    move(rule, at, ratios[segment.param], masters, states);
  }
}

std::vector<cuda::ChunkSpan> spans_of(const std::vector<Chunk>& chunks) {
  std::vector<cuda::ChunkSpan> spans(numels.size());
  for (std::uint32_t i = 0; i < chunks.size(); ++i) {
    cuda::ChunkSpan& span = spans[chunks[i].param];
    if (span.count++ == 0) span.first = i;
  }
  return spans;
}

/// Returns the ratios of a Normed rule.
template <typename R>
std::vector<float> step_on_device(const R& rule, const cuda::UnitUpdate& unit, const std::vector<Chunk>& plan,
                                  Stream stream) {
  if constexpr (!Normed<R>) {
    cuda::update(rule, unit, stream);
    synchronize(stream);
    return {};
  } else {
    const DeviceArray<NormSquares> of_chunks(std::vector<NormSquares>(plan.size()), stream);
    const DeviceArray<NormSquares> sums(std::vector<NormSquares>(numels.size()), stream);
    const DeviceArray<cuda::ChunkSpan> spans(spans_of(plan), stream);
    const DeviceArray<float> ratios(std::vector<float>(numels.size()), stream);
    cuda::take(rule, unit, of_chunks.data(), stream);
    cuda::sum_norms(of_chunks.data(), spans.data(), numels.size(), sums.data(), stream);
    cuda::trust_ratios(sums.data(), numels.size(), 1, ratios.data(), stream);
    cuda::move(rule, unit, ratios.data(), stream);
    return ratios.values();
  }
}

class CudaUpdate : public OnDeviceWith<std::tuple<Rule, Form>> {
 protected:
  static const Form& form() { return std::get<Form>(GetParam()); }

  /// Steps what rank holds on the device and on the host and compares every byte after every step.
  void expect_steps(int rank, std::size_t offset, bool skip) {
    const Rule& rule = std::get<Rule>(GetParam());
    const Range held = layout_.shard(rank);
    Arrays host(held.size());
    const auto [param_bytes, master_bytes] = stored(host.master, form());
    const std::size_t master_size = form().master == Master::low16 ? 2 : 4;
    const DeviceArray<std::byte> param(param_bytes, stream(), offset * size_of(form().dtype));
    const DeviceArray<std::byte> master(master_bytes, stream(), offset * master_size);
    const DeviceArray<float> first(host.first, stream(), offset), second(host.second, stream(), offset);
    const DeviceArray<StepState> state = one_of(StepState{.grad_scale = grad_scale, .skip = skip ? 1U : 0U}, stream());
    const std::vector<Chunk> plan = cuda::chunks_of(layout_, held);
    const DeviceArray<Chunk> chunks(plan, stream());
    for (int step = 1; step <= 3; ++step) {
      host.grad = numbers(held.size(), 10 + static_cast<std::uint32_t>(step), form().grad);
      const std::vector<std::byte> grad_bytes = encoded(host.grad, form().grad);
      const DeviceArray<std::byte> grad(grad_bytes, stream(), offset * size_of(form().grad));
      cuda::UnitUpdate unit{
          .weights = {param.data(), form().dtype, master_bytes.empty() ? nullptr : master.data(), form().master},
          .grad = grad.data(),
          .grad_dtype = form().grad,
          .states = {first.data(), second.data()},
          .chunks = chunks.data(),
          .chunk_count = plan.size(),
          .scalars = nullptr,
          .state = state.data()};
      const auto step_by = [&](const auto& one) {
        const DeviceArray scalars(all_scalars(one, step), stream());
        unit.scalars = scalars.data();
        return step_on_device(one, unit, plan, stream());
      };
      const std::vector<float> ratios = std::visit(step_by, rule);
      if (!skip) step_on_host(rule, host, layout_, held, step, ratios);
      const auto [expected_param, expected_master] = stored(host.master, form());
      // A parameter that is not stepped keeps its bytes, and they were stored() from the start.
      EXPECT_TRUE(same_bits(param.values(), expected_param)) << "step " << step;
      EXPECT_TRUE(same_bits(master.values(), expected_master)) << "step " << step;
      EXPECT_TRUE(same_bits(first.values(), host.first)) << "step " << step;
      EXPECT_TRUE(same_bits(second.values(), host.second)) << "step " << step;
      EXPECT_TRUE(same_bits(grad.values(), grad_bytes)) << "step " << step;
    }
  }

 private:
  Layout layout_ = update_layout();
};

TEST_P(CudaUpdate, GivesTheHostsBits) {
  for (int rank = 0; rank < 3; ++rank) expect_steps(rank, 0, false);
}

TEST_P(CudaUpdate, TakesAnyAlignment) { expect_steps(1, 1, false); }

TEST_P(CudaUpdate, TouchesNothingInASkippedStep) { expect_steps(1, 0, true); }

std::string name_of_case(const testing::TestParamInfo<std::tuple<Rule, Form>>& info) {
  const auto& [rule, form] = info.param;
  return name_of_rule({rule, info.index}) + "_" + name_of(form);
}

INSTANTIATE_TEST_SUITE_P(RulesAndForms, CudaUpdate,
                         testing::Combine(testing::ValuesIn(all_rules()), testing::ValuesIn(all_forms)), name_of_case);

using CudaUpdateArguments = OnDevice;

TEST_F(CudaUpdateArguments, AreFormsThatExist) {
  for (const Form form :
       {Form{DType::fp32, Master::low16}, Form{DType::fp32, Master::fp32}, Form{DType::bf16, Master::none},
        Form{DType::fp16, Master::low16}, Form{DType::fp32, Master::none, DType::fp16}}) {
    cuda::UnitUpdate unit;
    unit.weights = {.dtype = form.dtype, .form = form.master};
    unit.grad_dtype = form.grad;
    EXPECT_THROW(cuda::update(AdamW(), unit, stream()), InvalidArgument);
    EXPECT_THROW(cuda::take(Lamb(), unit, nullptr, stream()), InvalidArgument);
  }
}

TEST_F(CudaUpdateArguments, AreOfRulesWithAsManyPasses) {
  EXPECT_THROW(cuda::update(Lamb(), {}, stream()), InvalidArgument);
  EXPECT_THROW(cuda::take(AdamW(), {}, nullptr, stream()), InvalidArgument);
  EXPECT_THROW(cuda::move(Sgd(), {}, nullptr, stream()), InvalidArgument);
}

TEST_F(CudaUpdateArguments, AreNormsOfPartsAddedInOrder) {
  const std::vector<NormSquares> sums{{1, 4}, {0, 2}, {1e-30, 0.3}, {8, 5}, {0, 1}, {1e30, 0.1}};
  const DeviceArray<NormSquares> there(sums, stream());
  const DeviceArray<float> ratios(std::vector<float>(3), stream());
  cuda::trust_ratios(there.data(), 3, 2, ratios.data(), stream());
  const std::vector<float> expected{1, 1, trust_ratio(1e-30 + 1e30, 0.3 + 0.1)};
  EXPECT_TRUE(same_bits(ratios.values(), expected));
}

TEST_F(CudaUpdateArguments, MayBeAShardWithoutParameters) {
  cuda::update(AdamW(), {}, stream());
  cuda::update(Sgd(), {}, stream());
  cuda::take(Lamb(), {}, nullptr, stream());
  cuda::move(Lamb(), {}, nullptr, stream());
  synchronize(stream());
}

}  // namespace
}  // namespace aliquot::test
