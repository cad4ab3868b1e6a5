#include "aliquot/device_kernels.h"
#include "tests/cuda/device_test.h"

namespace aliquot::test {
namespace {

struct Gradient {
  std::size_t numel = 0;
  DType dtype = DType::fp32;
  bool given = true;
  std::size_t offset = 0;  ///< elements past a 256-byte boundary
};

Layout layout_of(const std::vector<Gradient>& gradients, int world_size) {
  UnitSpec unit{.name = "unit", .params = {}};
  for (const Gradient& gradient : gradients) unit.params.push_back({"param", gradient.numel});
  return Layout(unit, world_size);
}

/// The sources on the device, and the flat unit that they should become.
class Sources {
 public:
  Sources(const std::vector<Gradient>& gradients, const Layout& layout, Stream stream) : full_(layout.numel()) {
    for (std::size_t param = 0; param < gradients.size(); ++param) {
      const auto& [numel, dtype, given, offset] = gradients[param];
      if (!given) {
        sources_.push_back({});
        continue;
      }
      const std::vector<float> values = numbers(numel, static_cast<std::uint32_t>(param), dtype);
      std::ranges::copy(values, full_.begin() + static_cast<std::ptrdiff_t>(layout.param(param).begin));
      arrays_.emplace_back(encoded(values, dtype), stream, offset * size_of(dtype));
      sources_.push_back({arrays_.back().data(), dtype});
    }
  }
  std::span<const cuda::PackSource> sources() const { return sources_; }
  const std::vector<float>& full() const { return full_; }

 private:
  std::vector<float> full_;
  std::vector<DeviceArray<std::byte>> arrays_;
  std::vector<cuda::PackSource> sources_;
};

class CudaPack : public OnDeviceWith<DType> {
 protected:
  void expect_packed(const std::vector<Gradient>& gradients, int world_size, std::size_t full_offset = 0) {
    const Layout layout = layout_of(gradients, world_size);
    const Sources sources(gradients, layout, stream());
    std::vector<std::uint8_t> expected_present(gradients.size());
    for (std::size_t i = 0; i < gradients.size(); ++i) expected_present[i] = i % 5 == 0 || gradients[i].given;
    std::vector<std::uint8_t> before(gradients.size());
    for (std::size_t i = 0; i < gradients.size(); i += 5) before[i] = 1;  // an earlier micro-step had these
    const DeviceArray<std::uint8_t> present(before, stream());
    const std::vector<std::byte> garbage(layout.numel() * size_of(GetParam()), std::byte{0xFF});
    const DeviceArray<std::byte> full(garbage, stream(), full_offset * size_of(GetParam()));

    cuda::pack(layout, sources.sources(), full.data(), GetParam(), present.data(), stream());

    EXPECT_TRUE(same_bits(full.values(), encoded(sources.full(), GetParam())));
    EXPECT_EQ(present.values(), expected_present);
  }
};

constexpr std::size_t tile = 8192;

TEST_P(CudaPack, MixesTypesSizesAndMissingOnes) {
  const std::vector<Gradient> gradients{{5, DType::fp32},
                                        {0, DType::bf16, false},
                                        {16, DType::bf16},
                                        {1000, DType::fp16},
                                        {3 * tile + 7, DType::fp32, false},
                                        {2 * tile + 1, DType::bf16},
                                        {3 * tile, DType::fp32},
                                        {1, DType::fp16},
                                        {4 * tile + 3, DType::fp16},
                                        {2, DType::bf16},
                                        {0, DType::fp32, false}};
  for (const int world_size : {1, 3, 8}) expect_packed(gradients, world_size);
  expect_packed(gradients, 2, 1);  // into an outbox of any alignment
}

TEST_P(CudaPack, TakesSourcesOfAnyAlignment) {
  std::vector<Gradient> gradients;
  for (const DType dtype : {DType::fp32, DType::bf16, DType::fp16}) {
    for (const std::size_t offset : {1, 2, 3, 4}) gradients.push_back({tile + 5, dtype, true, offset});
  }
  expect_packed(gradients, 2);
}

TEST_P(CudaPack, TakesMoreParametersThanOneLaunch) {
  std::vector<Gradient> gradients;
  for (std::size_t i = 0; i < 250; ++i) {
    gradients.push_back(
        {i % 7 == 0 ? 0 : i * 37 % 500, i % 2 == 0 ? DType::bf16 : DType::fp32, i % 3 != 0 && i % 7 != 0});
  }
  expect_packed(gradients, 3);
}

TEST_P(CudaPack, IsLargerThanTheDeviceAtOnce) {
  expect_packed({{6'000'001, DType::bf16}, {3'000'000, DType::fp32}, {2'000'003, DType::fp16}}, 2);
}

TEST_P(CudaPack, LeavesNothingWhereThereIsNothing) {
  expect_packed({}, 2);
  expect_packed({{0, DType::fp32, false}}, 2);
  expect_packed({{100, DType::fp32, false}, {tile * 2, DType::fp32, false}}, 2);
}

INSTANTIATE_TEST_SUITE_P(Into, CudaPack, testing::Values(DType::fp32, DType::bf16, DType::fp16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

using CudaPackArguments = OnDevice;

TEST_F(CudaPackArguments, AreOneSourcePerParameter) {
  const Layout layout = layout_of({{4, DType::fp32}, {4, DType::fp32}}, 1);
  const DeviceArray<float> full(std::vector<float>(layout.numel()), stream());
  EXPECT_THROW(cuda::pack(layout, std::vector<cuda::PackSource>(3), full.data(), DType::fp32, nullptr, stream()),
               InvalidArgument);
}

TEST_F(CudaPackArguments, NeedNoPresence) {
  const Layout layout = layout_of({{4, DType::fp32}}, 1);
  const DeviceArray<float> full(std::vector<float>(layout.numel(), 1.0F), stream());
  const DeviceArray<float> source(std::vector<float>{1, 2, 3, 4}, stream());
  cuda::pack(layout, std::vector<cuda::PackSource>{{source.data(), DType::fp32}}, full.data(), DType::fp32, nullptr,
             stream());
  EXPECT_THAT(std::vector<float>(full.values()), testing::ElementsAre(1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
}

}  // namespace
}  // namespace aliquot::test
