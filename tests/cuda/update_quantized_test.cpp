// States of 8 bits on the device against the host's, byte by byte.
#include <cmath>
#include <vector>

#include "aliquot/device_kernels.h"
#include "aliquot/quantization.h"
#include "tests/cuda/device_test.h"
#include "tests/cuda/update_forms.h"

namespace aliquot::test {
namespace {

using cuda::Chunk;
using cuda::StepState;

/// A state of what a rank holds of a unit, on the host.
struct HostState {
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;

  HostState(const Layout& layout, std::size_t held)
      : codes(held), scales(scale_slot(held, numels.size(), layout.shard_numel())) {}

  /// Of a part that begins `begin` elements into what is held.
  QuantizedState part(const Layout& layout, const Segment& segment, std::size_t begin) {
    const std::size_t slot = scale_slot(begin, segment.param, layout.shard_numel());
    return {std::span(codes).subspan(begin, segment.range.size()),
            std::span(scales).subspan(slot, block_count(segment.range.size()))};
  }
};

class CudaUpdateQuantized : public OnDeviceWith<Form> {
 protected:
  static constexpr AdamW8bit rule{{.lr = 1e-2, .beta2 = 0.95, .weight_decay = 0.1}};

  void expect_steps(Range held, const std::vector<Chunk>& plan, std::size_t offset, bool skip) {
    std::vector<float> masters = numbers(held.size(), 1);
    HostState first(layout_, held.size()), second(layout_, held.size());
    fill(held, first, second);
    const auto [param_bytes, master_bytes] = stored(masters, GetParam());
    const std::size_t master_size = GetParam().master == Master::low16 ? 2 : 4;
    const DeviceArray<std::byte> param(param_bytes, stream(), offset * size_of(GetParam().dtype));
    const DeviceArray<std::byte> master(master_bytes, stream(), offset * master_size);
    const DeviceArray<std::uint8_t> first_codes(first.codes, stream(), offset);
    const DeviceArray<std::uint8_t> second_codes(second.codes, stream(), offset);
    const DeviceArray<float> first_scales(first.scales, stream()), second_scales(second.scales, stream());
    const DeviceArray<StepState> state = one_of(StepState{.grad_scale = grad_scale, .skip = skip ? 1U : 0U}, stream());
    const DeviceArray<Chunk> chunks(plan, stream());
    for (int step = 1; step <= 3; ++step) {
      const std::vector<float> grads =
          sized(numbers(held.size(), 10 + static_cast<std::uint32_t>(step), GetParam().grad));
      const DeviceArray<std::byte> grad(encoded(grads, GetParam().grad), stream(), offset * size_of(GetParam().grad));
      const DeviceArray scalars(all_scalars(rule, step), stream());
      cuda::update(rule,
                   {.weights = {param.data(), GetParam().dtype, master_bytes.empty() ? nullptr : master.data(),
                                GetParam().master},
                    .grad = grad.data(),
                    .grad_dtype = GetParam().grad,
                    .codes = {first_codes.data(), second_codes.data()},
                    .scales = {first_scales.data(), second_scales.data()},
                    .shard_numel = layout_.shard_numel(),
                    .chunks = chunks.data(),
                    .chunk_count = plan.size(),
                    .scalars = scalars.data(),
                    .state = state.data()},
                   stream());
      synchronize(stream());
      if (!skip) step_on_host(held, masters, grads, first, second, step);
      const auto [expected_param, expected_master] = stored(masters, GetParam());
      EXPECT_TRUE(same_bits(param.values(), expected_param)) << "step " << step;
      EXPECT_TRUE(same_bits(master.values(), expected_master)) << "step " << step;
      EXPECT_TRUE(same_bits(first_codes.values(), first.codes)) << "step " << step;
      EXPECT_TRUE(same_bits(second_codes.values(), second.codes)) << "step " << step;
      EXPECT_TRUE(same_bits(first_scales.values(), first.scales)) << "step " << step;
      EXPECT_TRUE(same_bits(second_scales.values(), second.scales)) << "step " << step;
    }
  }

  /// In the tests that set `powers_`: times a power of 2 that is another in each block, every fifth a zero.
  std::vector<float> sized(std::vector<float> values) const {
    for (std::size_t i = 0; i < values.size() && !powers_.empty(); ++i) {
      values[i] = i % 5 == 0 ? 0 : std::ldexp(values[i], powers_[i / quantization_block % powers_.size()]);
    }
    return values;
  }

  /// Shard by shard, as an optimizer steps them.
  std::vector<Chunk> chunks_of_all() const {
    std::vector<Chunk> all;
    for (int rank = 0; rank < layout_.world_size(); ++rank) {
      for (Chunk chunk : cuda::chunks_of(layout_, layout_.shard(rank))) {
        chunk.begin += layout_.shard(rank).begin;
        all.push_back(chunk);
      }
    }
    return all;
  }

  /// body(part, where it begins in `held`) for the parts of each shard in it.
  template <typename Body>
  void for_parts(Range held, const Body& body) const {
    for (int rank = 0; rank < layout_.world_size(); ++rank) {
      for (const Segment& segment : layout_.segments(intersect(layout_.shard(rank), held))) {
        body(segment, segment.range.begin - held.begin);
      }
    }
  }

  void fill(Range held, HostState& first, HostState& second) const {
    for_parts(held, [&](const Segment& segment, std::size_t begin) {
      std::vector<float> values = sized(numbers(segment.range.size(), 3 + static_cast<std::uint32_t>(segment.param)));
      const QuantizedState exp_avg = first.part(layout_, segment, begin);
      quantize(Role::exp_avg, values, exp_avg.codes.data(), exp_avg.scales.data());
      for (float& value : values) value *= value;
      const QuantizedState exp_avg_sq = second.part(layout_, segment, begin);
      quantize(Role::exp_avg_sq, values, exp_avg_sq.codes.data(), exp_avg_sq.scales.data());
    });
  }

  void step_on_host(Range held, std::vector<float>& masters, const std::vector<float>& grads, HostState& first,
                    HostState& second, int step) const {
    for_parts(held, [&](const Segment& segment, std::size_t begin) {
      if (!is_stepped(segment.param)) return;
      const QuantizedStates states{first.part(layout_, segment, begin), second.part(layout_, segment, begin)};
      update(rule, param_step(segment.param, step), Weights{.param = &masters[begin]},
             std::span(grads).subspan(begin, segment.range.size()), states);
    });
  }

  Layout layout_ = update_layout();
  std::vector<int> powers_;
};

TEST_P(CudaUpdateQuantized, GivesTheHostsBytesOfAShard) {
  for (int rank = 0; rank < 3; ++rank) {
    const Range held = layout_.shard(rank);
    expect_steps(held, cuda::chunks_of(layout_, held), 0, false);
  }
}

TEST_P(CudaUpdateQuantized, GivesTheHostsBytesOfTheWhole) {
  expect_steps({0, layout_.numel()}, chunks_of_all(), 0, false);
}

TEST_P(CudaUpdateQuantized, TakesAnyAlignment) {
  expect_steps(layout_.shard(1), cuda::chunks_of(layout_, layout_.shard(1)), 1, false);
}

TEST_P(CudaUpdateQuantized, GivesTheHostsBytesOfZerosAndOfNumbersOfAnySize) {
  powers_ = {0, -20, -60, -100, 20, 60, -40, 40};
  expect_steps({0, layout_.numel()}, chunks_of_all(), 0, false);
}

TEST_P(CudaUpdateQuantized, TouchesNothingInASkippedStep) {
  expect_steps(layout_.shard(1), cuda::chunks_of(layout_, layout_.shard(1)), 0, true);
}

TEST_P(CudaUpdateQuantized, TakesMoreChunksThanTheDeviceDoesAtATime) {
  constexpr std::size_t blocks = 2000;
  layout_ = Layout({"unit", {{"param", blocks * quantization_block}}}, 1);
  std::vector<Chunk> plan;
  for (std::size_t i = 0; i < blocks; ++i) plan.push_back({i * quantization_block, quantization_block, 0});
  expect_steps({0, layout_.numel()}, plan, 0, false);
}

INSTANTIATE_TEST_SUITE_P(Forms, CudaUpdateQuantized, testing::ValuesIn(all_forms),
                         [](const auto& instance) { return name_of(instance.param); });

TEST(CudaUpdateQuantizedArguments, MayBeAShardWithoutParameters) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device";
  const DeviceGuard guard(gpu);
  cuda::update(AdamW8bit(), {}, {});
  synchronize({});
}

}  // namespace
}  // namespace aliquot::test
