#include <tuple>

#include "aliquot/device_kernels.h"
#include "tests/cuda/device_test.h"

namespace aliquot::test {
namespace {

using CudaCast = OnDeviceWith<std::tuple<DType, DType>>;

/// Ties, the ends of each format's range, subnormal numbers, infinities, both zeros.
std::vector<float> difficult() {
  std::vector<float> values{0.0F,     -0.0F,      1.0F,         1.00390625F,  1.01171875F,      -1.00390625F,
                            65504.0F, 65519.99F,  65520.0F,     -65536.0F,    0x1p-24F,         0x1.8p-24F,
                            0x1p-25F, 0x1.8p-25F, 0x1.FFCp-15F, 0x1.FFEp-15F, 3.3895314e38F,    3.4e38F,
                            -3.4e38F, 0x1p-133F,  0x1.8p-133F,  0x1p-149F,    0x1.FFFFFEp-127F, infinity,
                            -infinity};
  for (int i = 0; i < 4096; ++i)
    values.push_back(std::bit_cast<float>(0x38000000U + 0x1001U * static_cast<unsigned>(i)));
  return values;
}

std::vector<std::byte> cast_on_device(const std::vector<float>& values, DType from, DType to, std::size_t offset,
                                      Stream stream) {
  const DeviceArray<std::byte> source(encoded(values, from), stream, offset * size_of(from));
  const DeviceArray<std::byte> result(std::vector<std::byte>(values.size() * size_of(to)), stream,
                                      offset * size_of(to));
  cuda::cast(source.data(), from, result.data(), to, values.size(), stream);
  return result.values();
}

TEST_P(CudaCast, RoundsToNearestEvenAtAnyCountAndAlignment) {
  const auto [from, to] = GetParam();
  std::vector<float> values = difficult();
  for (float& value : values) value = representable(value, from);
  for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{7}, values.size()}) {
    const std::vector<float> some(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(count));
    for (const std::size_t offset : {0, 1, 4}) {
      EXPECT_TRUE(same_bits(cast_on_device(some, from, to, offset, stream()), encoded(some, to)))
          << count << " elements, offset " << offset;
    }
  }
}

TEST_P(CudaCast, IsLongerThanTheGrid) {
  const auto [from, to] = GetParam();
  const std::vector<float> values = numbers(5'000'003, 3, from);
  EXPECT_TRUE(same_bits(cast_on_device(values, from, to, 0, stream()), encoded(values, to)));
}

TEST_P(CudaCast, KeepsNaN) {
  const auto [from, to] = GetParam();
  const std::vector<std::byte> back =
      cast_on_device({1.0F, quiet_nan}, from, to, 0, stream());  // NaN has many encodings: read as fp32 again
  const DeviceArray<std::byte> result(back, stream());
  const DeviceArray<float> read({0.0F, 0.0F}, stream());
  cuda::cast(result.data(), to, read.data(), DType::fp32, 2, stream());
  EXPECT_EQ(read.values()[0], 1.0F);
  EXPECT_TRUE(std::isnan(read.values()[1]));
}

std::string name_of_case(const testing::TestParamInfo<std::tuple<DType, DType>>& info) {
  return std::string(name_of(std::get<0>(info.param))) + "_to_" + std::string(name_of(std::get<1>(info.param)));
}

constexpr auto dtypes = {DType::fp32, DType::bf16, DType::fp16};
INSTANTIATE_TEST_SUITE_P(Types, CudaCast, testing::Combine(testing::ValuesIn(dtypes), testing::ValuesIn(dtypes)),
                         name_of_case);

}  // namespace
}  // namespace aliquot::test
