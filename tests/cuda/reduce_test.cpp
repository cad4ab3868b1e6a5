#include <algorithm>
#include <tuple>

#include "aliquot/device_kernels.h"
#include "aliquot/kernels.h"
#include "tests/cuda/device_test.h"

namespace aliquot::test {
namespace {

using cuda::DeviceStatistics;

DeviceArray<std::byte> workspace(Stream stream) {
  return {std::vector<std::byte>(cuda::reduce_workspace_bytes()), stream};
}

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
  DeviceStatistics on_device(const std::vector<float>& data, std::size_t offset = 0) {
    const DeviceArray<float> array(data, stream(), offset);
    const DeviceArray<DeviceStatistics> result = one_of(DeviceStatistics{-1, 99, 99}, stream());
    const DeviceArray<std::byte> space = workspace(stream());
    cuda::grad_statistics(array.data(), data.size(), result.data(), space.data(), stream());
    EXPECT_TRUE(same_bits(array.values(), data));
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

TEST_P(CudaStatistics, TakeTheLargestNumbers) {
  const std::vector<float> data(GetParam(), -3.4e38F);
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
    cuda::grad_statistics(array.data(), count, results.data() + i, space.data(), stream());
  }
  const std::vector<DeviceStatistics> values = results.values();
  for (std::size_t i = 0; i < 400; i += 2) ASSERT_EQ(values[i], values[0]) << i;
  for (std::size_t i = 1; i < 400; i += 2) {
    ASSERT_NEAR(values[i].square_sum, grad_statistics(std::span(data).first(1000 + i)).square_sum, 1e-9) << i;
  }
}

using CudaReduce = OnDeviceWith<std::tuple<DType, int>>;

struct Outcome {
  std::vector<float> result;
  DeviceStatistics statistics;
  DeviceStatistics of_result;  ///< the same by grad_statistics
};

Outcome reduce_on_device(const std::vector<std::vector<float>>& parts, DType dtype, const std::vector<float>& before,
                         Accumulate accumulate, std::size_t offset, Stream stream) {
  std::vector<DeviceArray<std::byte>> arrays;
  std::vector<const void*> pointers;
  for (const std::vector<float>& part : parts) {
    arrays.emplace_back(encoded(part, dtype), stream, offset * size_of(dtype));
    pointers.push_back(arrays.back().data());
  }
  const DeviceArray<float> result(before, stream, offset);
  const DeviceArray<DeviceStatistics> statistics(std::vector<DeviceStatistics>(2), stream);
  const DeviceArray<std::byte> space = workspace(stream);
  const float factor = 1.0F / static_cast<float>(parts.size());
  cuda::reduce(pointers, dtype, factor, result.data(), before.size(), accumulate, statistics.data(), space.data(),
               stream);
  cuda::grad_statistics(result.data(), before.size(), statistics.data() + 1, space.data(), stream);
  return {result.values(), statistics.values()[0], statistics.values()[1]};
}

void expect_reduced(const std::vector<std::vector<float>>& parts, DType dtype, Accumulate accumulate,
                    std::size_t offset, Stream stream) {
  const std::vector<float> before = numbers(parts[0].size(), 77);
  std::vector<float> expected = before;
  std::vector<const float*> pointers;
  for (const std::vector<float>& part : parts) pointers.push_back(part.data());
  reduce(pointers, 1.0F / static_cast<float>(parts.size()), expected, accumulate);

  const Outcome actual = reduce_on_device(parts, dtype, before, accumulate, offset, stream);
  EXPECT_TRUE(same_bits(actual.result, expected));
  expect_statistics(actual.statistics, expected);
  EXPECT_EQ(actual.statistics, actual.of_result);
}

std::vector<std::vector<float>> parts_of(int count, std::size_t numel, DType dtype) {
  std::vector<std::vector<float>> parts;
  for (int part = 0; part < count; ++part) parts.push_back(numbers(numel, static_cast<std::uint32_t>(part) + 1, dtype));
  return parts;
}

TEST_P(CudaReduce, AddsInTheOrderOfTheRanks) {
  const auto [dtype, ranks] = GetParam();
  for (const std::size_t count : {0, 1, 5, 1024, 100'003}) {
    for (const Accumulate accumulate : {Accumulate::no, Accumulate::yes}) {
      for (const std::size_t offset : {0, 1}) {
        SCOPED_TRACE(testing::Message() << count << " elements, offset " << offset);
        expect_reduced(parts_of(ranks, count, dtype), dtype, accumulate, offset, stream());
      }
    }
  }
}

TEST_P(CudaReduce, ReportsWhatIsNotFinite) {
  const auto [dtype, ranks] = GetParam();
  std::vector<std::vector<float>> parts = parts_of(ranks, 5000, dtype);
  parts.back()[4321] = infinity;
  parts.front()[4999] = infinity;
  const Outcome outcome = reduce_on_device(parts, dtype, std::vector<float>(5000), Accumulate::yes, 0, stream());
  EXPECT_EQ(outcome.statistics.non_finite, 2U);
  EXPECT_EQ(outcome.statistics.first_bad, 4321U);
}

std::string name_of_case(const testing::TestParamInfo<std::tuple<DType, int>>& info) {
  return std::string(name_of(std::get<0>(info.param))) + "_" + std::to_string(std::get<1>(info.param)) + "_ranks";
}

INSTANTIATE_TEST_SUITE_P(Worlds, CudaReduce,
                         testing::Combine(testing::Values(DType::fp32, DType::bf16, DType::fp16),
                                          testing::Values(1, 2, 3, 8, 9, 21)),
                         name_of_case);

using CudaReduceLarge = OnDevice;

TEST_F(CudaReduceLarge, IsLongerThanTheGrid) {
  expect_reduced(parts_of(2, 9'000'001, DType::bf16), DType::bf16, Accumulate::yes, 0, stream());
  expect_reduced(parts_of(3, 5'000'000, DType::fp32), DType::fp32, Accumulate::no, 0, stream());
}

TEST_F(CudaReduceLarge, TakesAThousandRanks) {
  expect_reduced(parts_of(cuda::max_parts, 33, DType::bf16), DType::bf16, Accumulate::no, 0, stream());
}

TEST_F(CudaReduceLarge, RefusesNoneAndTooMany) {
  const auto with = [&](std::size_t parts) {
    const std::vector<const void*> pointers(parts);
    cuda::reduce(pointers, DType::fp32, 1, nullptr, 0, Accumulate::no, nullptr, nullptr, stream());
  };
  EXPECT_THROW(with(0), InvalidArgument);
  EXPECT_THROW(with(cuda::max_parts + 1), InvalidArgument);
}

}  // namespace
}  // namespace aliquot::test
