#include <algorithm>
#include <tuple>

#include "aliquot/kernels.h"
#include "tests/cuda/reductions.h"

namespace aliquot::test {
namespace {

using cuda::DeviceStatistics;

/// What the statistics of `data` must be, but for the rounding of the sum.
DeviceStatistics expected_statistics(const std::vector<float>& data) {
  const GradStatistics host = grad_statistics(data);
  const auto bad = std::ranges::find_if(data, [](float value) { return !std::isfinite(value); });
  const auto index = static_cast<std::uint64_t>(bad - data.begin());
  return {host.square_sum, host.non_finite, bad == data.end() ? DeviceStatistics::none : index};
}

void expect_statistics(const DeviceStatistics& actual, const std::vector<float>& data) {
  const DeviceStatistics expected = expected_statistics(data);
  EXPECT_NEAR(actual.square_sum, expected.square_sum, 1e-12 * expected.square_sum);
  EXPECT_EQ(actual.non_finite, expected.non_finite);
  EXPECT_EQ(actual.first_bad, expected.first_bad);
}

class CudaStatistics : public OnDeviceWith<std::size_t> {
 protected:
  DeviceStatistics on_device(const std::vector<float>& data, std::size_t offset = 0, DType dtype = DType::fp32) {
    const DeviceArray<std::byte> array(encoded(data, dtype), stream(), offset * size_of(dtype));
    const DeviceArray<DeviceStatistics> result = one_of(DeviceStatistics{-1, 99, 99}, stream());
    const DeviceArray<std::byte> space = workspace(stream());
    cuda::grad_statistics(array.data(), dtype, data.size(), result.data(), space.data(), stream());
    EXPECT_TRUE(same_bits(array.values(), encoded(data, dtype)));
    return result.values()[0];
  }
};

TEST_P(CudaStatistics, AreTheHosts) { expect_statistics(on_device(numbers(GetParam(), 5)), numbers(GetParam(), 5)); }

TEST_P(CudaStatistics, FindWhatIsNotFinite) {
  std::vector<float> data = numbers(GetParam(), 6);
  for (const std::size_t from_end : {0, 1, 4, 700, 4'000'000}) {
    if (from_end >= data.size()) break;
    data[data.size() - 1 - from_end] = from_end % 2 == 0 ? quiet_nan : -infinity;
    expect_statistics(on_device(data), data);
  }
}

TEST_P(CudaStatistics, DoNotDependOnTheAlignment) {
  const std::vector<float> data = numbers(GetParam(), 7);
  EXPECT_EQ(on_device(data, 0), on_device(data, 1));
}

TEST_P(CudaStatistics, GiveInBf16TheBitsOfFp32) {
  constexpr float largest = 0x1.FEp127F, smallest = 0x1p-133F;
  std::vector<float> data = numbers(GetParam(), 8, DType::bf16);
  const std::vector<float> specials{0.0F, -0.0F, smallest, -smallest, largest, -largest};
  for (std::size_t i = 0; i < data.size(); i += 7) data[i] = specials[i / 7 % specials.size()];
  for (const std::size_t bad : {0, 1, 2}) {
    for (std::size_t i = 0; i < std::min(bad, data.size()); ++i)
      data[data.size() / (i + 2)] = i == 0 ? infinity : quiet_nan;
    const DeviceStatistics in_fp32 = on_device(data);
    expect_statistics(in_fp32, data);
    for (const std::size_t offset : {0, 1}) EXPECT_EQ(on_device(data, offset, DType::bf16), in_fp32) << bad << " bad";
  }
}

TEST_P(CudaStatistics, TakeTheLargestNumbers) {
  const std::vector<float> data(GetParam(), -3.4e38F);
  expect_statistics(on_device(data), data);
}

TEST_P(CudaStatistics, TakeWhatIsAllBad) {
  const std::vector<float> data(GetParam(), quiet_nan);
  expect_statistics(on_device(data), data);
}

INSTANTIATE_TEST_SUITE_P(Counts, CudaStatistics, testing::Values(0, 1, 3, 4, 5, 1024, 100'003, 5'000'001));

using CudaStatisticsAgain = OnDevice;

// Blocks arrive in another order every time, and leave the workspace ready for the next call.
TEST_F(CudaStatisticsAgain, GivesTheSameBits) {
  const std::vector<float> data = numbers(3'000'000, 8);
  const DeviceArray<float> array(data, stream());
  const DeviceArray<std::byte> space = workspace(stream());
  const DeviceArray<DeviceStatistics> results(std::vector<DeviceStatistics>(400), stream());
  for (std::size_t i = 0; i < 400; ++i) {
    const std::size_t count = i % 2 == 0 ? data.size() : 1000 + i;  // grids of different sizes, one after the other
    cuda::grad_statistics(array.data(), DType::fp32, count, results.data() + i, space.data(), stream());
  }
  const std::vector<DeviceStatistics> values = results.values();
  for (std::size_t i = 0; i < 400; i += 2) ASSERT_EQ(values[i], values[0]) << i;
  for (std::size_t i = 1; i < 400; i += 2) {
    ASSERT_NEAR(values[i].square_sum, grad_statistics(std::span(data).first(1000 + i)).square_sum, 1e-9) << i;
  }
}

// Long enough that every thread loads as many quads at a time as it ever does, and then fewer and fewer.
TEST_F(CudaStatisticsAgain, GivesInBf16TheBitsOfFp32WhereThreadsLoadMost) {
  const std::vector<float> data = numbers(34'000'001, 9, DType::bf16);
  const DeviceArray<float> in_fp32(data, stream());
  const DeviceArray<std::byte> in_bf16(encoded(data, DType::bf16), stream());
  const DeviceArray<std::byte> space = workspace(stream());
  const DeviceArray<DeviceStatistics> results(std::vector<DeviceStatistics>(2), stream());
  cuda::grad_statistics(in_fp32.data(), DType::fp32, data.size(), results.data(), space.data(), stream());
  cuda::grad_statistics(in_bf16.data(), DType::bf16, data.size(), results.data() + 1, space.data(), stream());
  expect_statistics(results.values()[0], data);
  EXPECT_EQ(results.values()[1], results.values()[0]);
}

using CudaReduce = OnDeviceWith<std::tuple<Types, int>>;

void expect_reduced(const std::vector<std::vector<float>>& parts, Types types, Accumulate accumulate,
                    std::size_t offset, Stream stream) {
  const std::vector<float> before = numbers(parts[0].size(), 77, types.result);
  std::vector<float> expected = before;
  std::vector<const float*> pointers;
  for (const std::vector<float>& part : parts) pointers.push_back(part.data());
  reduce(pointers, 1.0F / static_cast<float>(parts.size()), expected, accumulate);
  for (float& value : expected) value = representable(value, types.result);

  const Outcome actual = outcome_of(cuda::reduce, parts, types, before, accumulate, offset, stream);
  EXPECT_TRUE(same_bits(actual.result, encoded(expected, types.result)));
  expect_statistics(actual.statistics, expected);
  EXPECT_EQ(actual.statistics, actual.of_result);
}

TEST_P(CudaReduce, AddsInTheOrderOfTheRanks) {
  const auto [types, ranks] = GetParam();
  for (const std::size_t count : {0, 1, 5, 1024, 100'003}) {
    for (const Accumulate accumulate : {Accumulate::no, Accumulate::yes}) {
      for (const std::size_t offset : {0, 1}) {
        SCOPED_TRACE(testing::Message() << count << " elements, offset " << offset);
        expect_reduced(parts_of(ranks, count, types.parts), types, accumulate, offset, stream());
      }
    }
  }
}

TEST_P(CudaReduce, ReportsWhatIsNotFinite) {
  const auto [types, ranks] = GetParam();
  std::vector<std::vector<float>> parts = parts_of(ranks, 5000, types.parts);
  parts.back()[4321] = infinity;
  parts.front()[4999] = infinity;
  const Outcome outcome =
      outcome_of(cuda::reduce, parts, types, std::vector<float>(5000), Accumulate::yes, 0, stream());
  EXPECT_EQ(outcome.statistics.non_finite, 2U);
  EXPECT_EQ(outcome.statistics.first_bad, 4321U);
  EXPECT_EQ(outcome.statistics, outcome.of_result);
}

INSTANTIATE_TEST_SUITE_P(Worlds, CudaReduce,
                         testing::Combine(testing::ValuesIn(all_types), testing::Values(1, 2, 3, 8, 9, 21)),
                         name_of_case);

using CudaReduceToBf16 = OnDevice;

// 1 + 2^-8 is half-way between bf16 numbers. Rounded to a bf16 of its own first, the sum would leave 1 as it is.
TEST_F(CudaReduceToBf16, RoundsOnce) {
  const Outcome outcome = outcome_of(cuda::reduce, {{0x1p-8F}, {0x1p-8F + 0x1p-20F}}, {DType::fp32, DType::bf16},
                                     {1.0F}, Accumulate::yes, 0, stream());
  EXPECT_EQ(outcome.result, encoded({1 + 0x1p-7F}, DType::bf16));
  EXPECT_EQ(outcome.statistics.square_sum, (1 + 0x1p-7) * (1 + 0x1p-7));
}

TEST_F(CudaReduceToBf16, TakesTiesToTheEvenOne) {
  const Outcome outcome = outcome_of(cuda::reduce, {{1 + 0x1p-8F, 1 + 0x3p-8F}}, {DType::fp32, DType::bf16}, {0, 0},
                                     Accumulate::no, 0, stream());
  EXPECT_EQ(outcome.result, encoded({1.0F, 1 + 0x1p-6F}, DType::bf16));
}

// The statistics are of what is stored, though the sum itself was finite.
TEST_F(CudaReduceToBf16, ReportsWhatRoundsToInfinity) {
  std::vector<float> part(6, 1.0F);
  part[1] = 3.4e38F;
  part[4] = quiet_nan;
  for (const std::size_t offset : {0, 1}) {
    const Outcome outcome = outcome_of(cuda::reduce, {part}, {DType::fp32, DType::bf16}, std::vector<float>(6),
                                       Accumulate::yes, offset, stream());
    EXPECT_EQ(outcome.result, encoded({1, infinity, 1, 1, quiet_nan, 1}, DType::bf16));
    EXPECT_EQ(outcome.statistics, (DeviceStatistics{4, 2, 1}));
    EXPECT_EQ(outcome.of_result, outcome.statistics);
  }
}

using CudaReduceLarge = OnDevice;

TEST_F(CudaReduceLarge, IsLongerThanTheGrid) {
  using enum DType;
  expect_reduced(parts_of(2, 17'000'001, bf16), {bf16, fp32}, Accumulate::yes, 0, stream());
  expect_reduced(parts_of(3, 5'000'000, fp32), {fp32, fp32}, Accumulate::no, 0, stream());
  expect_reduced(parts_of(2, 17'000'001, bf16), {bf16, bf16}, Accumulate::yes, 0, stream());
}

TEST_F(CudaReduceLarge, TakesAThousandRanks) {
  expect_reduced(parts_of(cuda::max_parts, 33, DType::bf16), {DType::bf16, DType::fp32}, Accumulate::no, 0, stream());
}

TEST_F(CudaReduceLarge, RefusesNoneAndTooMany) {
  const auto with = [&](std::size_t parts) {
    const std::vector<const void*> pointers(parts);
    cuda::reduce(pointers, DType::fp32, 1, nullptr, DType::fp32, 0, Accumulate::no, nullptr, nullptr, stream());
  };
  EXPECT_THROW(with(0), InvalidArgument);
  EXPECT_THROW(with(cuda::max_parts + 1), InvalidArgument);
}

TEST_F(CudaReduceLarge, KeepsNoGradientInFp16) {
  const std::vector<const void*> part(1);
  EXPECT_THROW(cuda::reduce(part, DType::fp16, 1, nullptr, DType::fp16, 0, Accumulate::no, nullptr, nullptr, stream()),
               InvalidArgument);
  EXPECT_THROW(cuda::grad_statistics(nullptr, DType::fp16, 0, nullptr, nullptr, stream()), InvalidArgument);
}

}  // namespace
}  // namespace aliquot::test
