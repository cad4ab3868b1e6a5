// What of the device's kernels needs no device.
#include "aliquot/device_kernels.h"

#include <gtest/gtest.h>

namespace aliquot::cuda {
namespace {

Layout layout_of(const std::vector<std::size_t>& numels, int world_size) {
  UnitSpec unit{.name = "unit", .params = {}};
  for (const std::size_t numel : numels) unit.params.push_back({"param", numel});
  return Layout(unit, world_size);
}

TEST(Chunks, CoverWhatIsHeldOfEachParameterOnce) {
  const Layout layout = layout_of({5, 0, 4096, 10'000, 1, 20'001}, 3);
  for (int rank = 0; rank < 3; ++rank) {
    const Range held = layout.shard(rank);
    std::vector<int> expected(held.size(), -1), covered(held.size(), -1);
    for (const Segment& segment : layout.segments(held)) {
      for (std::size_t i = segment.range.begin; i < segment.range.end; ++i) {
        expected[i - held.begin] = static_cast<int>(segment.param);
      }
    }
    for (const Chunk& chunk : chunks_of(layout, held)) {
      EXPECT_GE(chunk.count, 1U);
      EXPECT_LE(chunk.count, chunk_size);
      EXPECT_EQ(chunk.begin % Layout::alignment, 0U);
      for (std::size_t i = chunk.begin; i < chunk.begin + chunk.count; ++i) {
        EXPECT_EQ(covered[i], -1);
        covered[i] = static_cast<int>(chunk.param);
      }
    }
    EXPECT_EQ(covered, expected);
  }
}

TEST(Chunks, AreNoneInAnEmptyShard) {
  EXPECT_TRUE(chunks_of(layout_of({}, 2), {0, 0}).empty());
  EXPECT_TRUE(chunks_of(layout_of({5}, 2), layout_of({5}, 2).shard(1)).empty());
}

TEST(ReportShape, KeepsTheReportsOfAllRanksAligned) {
  for (std::size_t params = 0; params < 40; ++params) {
    const ReportShape shape{.units = 3, .params = params, .world_size = 2};
    EXPECT_EQ(shape.bytes() % 16, 0U);
    EXPECT_GE(shape.bytes(), shape.present_offset() + params);
    EXPECT_LT(shape.bytes(), shape.present_offset() + params + 16);
  }
}

TEST(DeviceKernels, SayThatABuildWithoutCudaHasNone) {
  if (built_with_cuda()) GTEST_SKIP() << "this build has them";
  EXPECT_THROW(scale(nullptr, DType::fp32, 0, nullptr, {}), DeviceError);
}

}  // namespace
}  // namespace aliquot::cuda
