#include "aliquot/partition.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "aliquot/error.h"
#include "ranks.h"

namespace aliquot {
namespace {

using test::message_of;
using ::testing::HasSubstr;

UnitSpec unit_of(const std::vector<std::size_t>& numels) {
  UnitSpec unit{.name = "blocks.0", .params = {}};
  for (const std::size_t numel : numels) unit.params.push_back({"p" + std::to_string(unit.params.size()), numel});
  return unit;
}

const std::vector<std::vector<std::size_t>> shapes = {
    {},   {0},          {1},    {0, 0, 1, 0},     {2, 3, 5, 7, 11, 13}, {16},
    {17}, {15, 16, 17}, {1021}, {4099, 1, 0, 64}, {1, 1, 1, 1, 1}};

class LayoutWorlds : public ::testing::TestWithParam<int> {
 protected:
  std::vector<Layout> layouts() const {
    std::vector<Layout> made;
    for (const auto& shape : shapes) made.emplace_back(unit_of(shape), GetParam());
    return made;
  }
};

TEST_P(LayoutWorlds, ShardsOfAllRanksPartitionTheUnit) {
  for (const Layout& layout : layouts()) {
    std::size_t end = 0;
    for (int rank = 0; rank < GetParam(); ++rank) {
      EXPECT_EQ(layout.shard(rank).begin, end);
      EXPECT_EQ(layout.shard(rank).size(), layout.shard_numel());
      end = layout.shard(rank).end;
    }
    EXPECT_EQ(end, layout.numel());
    EXPECT_EQ(layout.bytes(), layout.shard_bytes() * static_cast<std::size_t>(GetParam()));
  }
}

TEST_P(LayoutWorlds, ShardsAndParametersBeginAligned) {
  for (const Layout& layout : layouts()) {
    EXPECT_EQ(layout.shard_numel() % Layout::alignment, 0u);
    for (std::size_t param = 0; param < layout.unit().params.size(); ++param) {
      EXPECT_EQ(layout.param(param).begin % Layout::alignment, 0u);
      EXPECT_EQ(layout.param(param).size(), layout.unit().params[param].numel);
      EXPECT_LE(layout.param(param).end, layout.numel());
    }
  }
}

TEST_P(LayoutWorlds, SegmentsOfTheShardsCoverEachParameterOnceAndNoPadding) {
  for (const Layout& layout : layouts()) {
    std::vector<int> owner_of(layout.numel(), -1);
    for (int rank = 0; rank < GetParam(); ++rank) {
      for (const Segment& segment : layout.segments(layout.shard(rank))) {
        EXPECT_FALSE(segment.range.empty());
        EXPECT_EQ(intersect(segment.range, layout.shard(rank)), segment.range);
        EXPECT_EQ(intersect(segment.range, layout.param(segment.param)), segment.range);
        for (std::size_t i = segment.range.begin; i < segment.range.end; ++i) {
          EXPECT_EQ(owner_of[i], -1) << "element " << i << " is covered twice";
          owner_of[i] = rank;
        }
      }
    }
    std::size_t covered = 0, elements = 0;
    for (const int owner : owner_of) covered += owner >= 0 ? 1 : 0;
    for (const ParamSpec& param : layout.unit().params) elements += param.numel;
    EXPECT_EQ(covered, elements);
  }
}

TEST_P(LayoutWorlds, PaddingIsAtMostALinePerParameterAndPerRank) {
  for (const Layout& layout : layouts()) {
    std::size_t elements = 0;
    for (const ParamSpec& param : layout.unit().params) elements += param.numel;
    const std::size_t lines = layout.unit().params.size() + static_cast<std::size_t>(GetParam());
    EXPECT_LE(layout.numel(), elements + lines * Layout::alignment);
  }
}

INSTANTIATE_TEST_SUITE_P(Partition, LayoutWorlds, ::testing::Range(1, 10));

TEST(Layout, SegmentsOfAnyRangeAreCutToIt) {
  const Layout layout(unit_of({20, 3, 0, 5}), 1);  // at 0, 32, 48 and 48
  const std::vector<Segment> segments = layout.segments({10, 50});
  ASSERT_EQ(segments.size(), 3u);
  EXPECT_EQ(segments[0].param, 0u);
  EXPECT_EQ(segments[0].range, (Range{10, 20}));
  EXPECT_EQ(segments[1].range, (Range{32, 35}));
  EXPECT_EQ(segments[2].param, 3u);
  EXPECT_EQ(segments[2].range, (Range{48, 50}));
  EXPECT_TRUE(layout.segments({20, 32}).empty()) << "padding is in no segment";
}

TEST(Layout, IntersectionOfRangesApartIsEmpty) {
  EXPECT_TRUE(intersect({0, 4}, {4, 8}).empty());
  EXPECT_TRUE(intersect({6, 8}, {1, 3}).empty());
  EXPECT_EQ(intersect({2, 9}, {0, 5}), (Range{2, 5}));
}

TEST(Layout, RefusesAWorldOrARankThatCannotBe) {
  EXPECT_THROW(Layout(unit_of({1}), 0), InvalidArgument);
  const Layout layout(unit_of({1}), 3);
  EXPECT_THROW(layout.shard(-1), InvalidArgument);
  EXPECT_THAT(message_of([&] { layout.shard(3); }),
              AllOf(HasSubstr("blocks.0"), HasSubstr("rank 3"), HasSubstr("world of 3")));
}

TEST(Stage, ShardsMoreWithEachNumber) {
  const auto sharded = [](int number) {
    const Stage stage(number);
    return stage.shards_states() + stage.shards_gradients() + stage.shards_parameters();
  };
  for (int number = 0; number <= 3; ++number) EXPECT_EQ(sharded(number), number);
  EXPECT_TRUE(Stage(1).shards_states());
  EXPECT_TRUE(Stage(2).shards_gradients());
}

TEST(Stage, RefusesNumbersThatZeroDoesNotHave) {
  EXPECT_THROW(Stage(-1), InvalidArgument);
  EXPECT_THAT(message_of([] { Stage(4); }), HasSubstr("stage is 4"));
}

}  // namespace
}  // namespace aliquot
