#include <array>
#include <tuple>

#include "tests/cuda/reductions.h"

namespace aliquot::test {
namespace {

using cuda::DeviceStatistics;

/// But for the order in which squares were added.
void expect_same(const DeviceStatistics& actual, const DeviceStatistics& expected) {
  EXPECT_NEAR(actual.square_sum, expected.square_sum, 1e-12 * expected.square_sum);
  EXPECT_EQ(actual.non_finite, expected.non_finite);
  EXPECT_EQ(actual.first_bad, expected.first_bad);
}

/// That all is left as reduce() leaves it. Returns the statistics.
DeviceStatistics expect_reduced(const std::vector<std::vector<float>>& parts, Types types, Accumulate accumulate,
                                std::size_t offset, Stream stream) {
  const std::vector<float> before = numbers(parts[0].size(), 77, types.result);
  const Outcome expected = outcome_of(cuda::reduce, parts, types, before, accumulate, offset, stream);
  const Outcome actual = outcome_of(cuda::pull_and_reduce, parts, types, before, accumulate, offset, stream);
  EXPECT_TRUE(same_bits(actual.result, expected.result));
  expect_same(actual.statistics, expected.statistics);
  return actual.statistics;
}

using CudaPullAndReduce = OnDeviceWith<std::tuple<Types, int>>;

TEST_P(CudaPullAndReduce, LeavesWhatReduceLeaves) {
  const auto [types, ranks] = GetParam();
  for (const std::size_t count : {0, 1, 3, 4, 5, 7, 8, 9, 1024, 100'003}) {
    const std::vector<std::vector<float>> parts = parts_of(ranks, count, types.parts);
    for (const Accumulate accumulate : {Accumulate::no, Accumulate::yes}) {
      SCOPED_TRACE(testing::Message() << count << " elements");
      const DeviceStatistics statistics = expect_reduced(parts, types, accumulate, 0, stream());
      EXPECT_EQ(expect_reduced(parts, types, accumulate, 1, stream()), statistics) << "not aligned";
    }
  }
}

TEST_P(CudaPullAndReduce, FindsWhatIsNotFinite) {
  const auto [types, ranks] = GetParam();
  std::vector<std::vector<float>> parts = parts_of(ranks, 140'005, types.parts);
  for (const std::size_t bad : {140'004, 139'999, 23'450}) {
    (bad % 2 == 0 ? parts.front() : parts.back())[bad] = bad % 3 == 0 ? quiet_nan : -infinity;
    for (const std::size_t offset : {0, 1}) {
      EXPECT_EQ(expect_reduced(parts, types, Accumulate::yes, offset, stream()).first_bad, bad) << "offset " << offset;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Worlds, CudaPullAndReduce,
                         testing::Combine(testing::ValuesIn(all_types), testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 9, 11)),
                         name_of_case);

using CudaPullAndReduceLarge = OnDevice;

// Every thread loads as many quads at a time as it ever does, many times, and then fewer and fewer.
TEST_F(CudaPullAndReduceLarge, IsLongerThanTheGrid) {
  using enum DType;
  expect_reduced(parts_of(1, 9'000'001, bf16), {bf16, fp32}, Accumulate::no, 0, stream());
  expect_reduced(parts_of(2, 17'000'001, bf16), {bf16, fp32}, Accumulate::yes, 0, stream());
  expect_reduced(parts_of(2, 17'000'001, bf16), {bf16, bf16}, Accumulate::no, 0, stream());
  expect_reduced(parts_of(3, 5'000'000, fp32), {fp32, fp32}, Accumulate::yes, 0, stream());
  expect_reduced(parts_of(3, 5'000'000, fp32), {fp32, bf16}, Accumulate::yes, 0, stream());
  expect_reduced(parts_of(8, 5'000'007, bf16), {bf16, bf16}, Accumulate::yes, 0, stream());
}

TEST_F(CudaPullAndReduceLarge, TakesAThousandRanks) {
  expect_reduced(parts_of(cuda::max_parts, 33, DType::bf16), {DType::bf16, DType::fp32}, Accumulate::no, 0, stream());
}

// Blocks arrive in another order every time; reduce() and this use one workspace, one after the other.
TEST_F(CudaPullAndReduceLarge, GivesTheSameBitsAgain) {
  constexpr std::size_t runs = 100, count = 1'000'003;
  const DeviceArray<float> part(numbers(count, 8), stream()), result(std::vector<float>(count), stream());
  const std::array<const void*, 2> parts{part.data(), part.data()};
  const DeviceArray<std::byte> space = workspace(stream());
  const DeviceArray<DeviceStatistics> all(std::vector<DeviceStatistics>(2 * runs), stream());
  for (std::size_t i = 0; i < 2 * runs; ++i) {
    const auto reduce = i % 2 == 0 ? cuda::pull_and_reduce : cuda::reduce;
    reduce(parts, DType::fp32, 0.5F, result.data(), DType::fp32, count, Accumulate::no, all.data() + i, space.data(),
           stream());
  }
  const std::vector<DeviceStatistics> values = all.values();
  for (std::size_t i = 2; i < 2 * runs; ++i) ASSERT_EQ(values[i], values[i % 2]) << i;
  expect_same(values[0], values[1]);
}

TEST_F(CudaPullAndReduceLarge, RefusesNoneAndTooMany) {
  const auto with = [&](std::size_t parts) {
    const std::vector<const void*> pointers(parts);
    cuda::pull_and_reduce(pointers, DType::fp32, 1, nullptr, DType::fp32, 0, Accumulate::no, nullptr, nullptr,
                          stream());
  };
  EXPECT_THROW(with(0), InvalidArgument);
  EXPECT_THROW(with(cuda::max_parts + 1), InvalidArgument);
}

}  // namespace
}  // namespace aliquot::test
