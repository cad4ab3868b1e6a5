#include "aliquot/slots.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "aliquot/error.h"
#include "ranks.h"

namespace aliquot {
namespace {

using test::message_of;
using ::testing::HasSubstr;
using Home = Slots::Home;

// Units a, b, c and d of different sizes; "root" encloses them.
class SlotsTest : public ::testing::Test {
 protected:
  static constexpr std::size_t a = 0, b = 1, c = 2, d = 3, root = 4;

  SlotsTest() {
    for (const std::size_t numel : {64u, 128u, 32u, 128u}) {
      layouts_.emplace_back(
          UnitSpec{.name = std::string(1, static_cast<char>('a' + layouts_.size())), .params = {{"weight", numel}}}, 1);
    }
    layouts_.emplace_back(UnitSpec{.name = "root", .params = {{"bias", 16}}, .encloses_units = true}, 1);
  }

  Slots slots(std::size_t ring) const {
    std::vector<const Layout*> pointers;
    for (const Layout& layout : layouts_) pointers.push_back(&layout);
    return Slots(pointers, ring, host_memory());
  }
  static std::byte* visit(Slots& slots, std::size_t unit) {
    std::byte* memory = slots.take(unit, Home::may_move);
    slots.release(unit);
    return memory;
  }

  std::vector<Layout> layouts_;
};

TEST_F(SlotsTest, AUnitLandsInItsHomeEverAfter) {
  Slots ring = slots(2);
  EXPECT_EQ(ring.home(a), nullptr);
  std::byte* homes[] = {visit(ring, a), visit(ring, b), visit(ring, c), visit(ring, d)};
  for (const std::size_t unit : {d, c, b, a, c, a}) EXPECT_EQ(visit(ring, unit), homes[unit]);
  EXPECT_EQ(ring.home(a), homes[a]);
}

TEST_F(SlotsTest, UnitsTakeTurnsInTheRing) {
  Slots ring = slots(2);
  const std::byte* first = visit(ring, a);
  const std::byte* second = visit(ring, b);
  EXPECT_NE(first, second);
  EXPECT_EQ(visit(ring, c), first);
  EXPECT_EQ(visit(ring, d), second);
  EXPECT_EQ(ring.bytes(), 2 * layouts_[b].bytes()) << "slots are as large as the largest unit";
}

TEST_F(SlotsTest, TheRingGrowsWhereMoreUnitsAreLiveTogether) {
  Slots ring = slots(2);
  const std::byte* homes[] = {ring.take(a, Home::fixed), ring.take(b, Home::fixed), ring.take(c, Home::fixed)};
  EXPECT_NE(homes[c], homes[a]);
  EXPECT_NE(homes[c], homes[b]);
  EXPECT_EQ(ring.bytes(), 3 * layouts_[b].bytes());
}

TEST_F(SlotsTest, AUnitIsLiveUntilReleasedAsOftenAsTaken) {
  Slots ring = slots(2);
  ring.take(a, Home::fixed);
  ring.take(a, Home::fixed);
  ring.release(a);
  EXPECT_TRUE(ring.live(a));
  ring.release(a);
  EXPECT_FALSE(ring.live(a));
  ring.release(a);
  EXPECT_FALSE(ring.live(a)) << "a release too many is harmless";
}

TEST_F(SlotsTest, AnotherUnitsReleaseLeavesTheTenant) {
  Slots ring = slots(2);
  visit(ring, a);
  visit(ring, b);
  ring.take(c, Home::fixed);  // where a lives
  ring.release(a);
  EXPECT_TRUE(ring.live(c));
}

TEST_F(SlotsTest, AHomeThatIsTakenMovesIfItMay) {
  Slots ring = slots(2);
  visit(ring, a);
  visit(ring, b);
  const std::byte* home = ring.take(c, Home::may_move);
  EXPECT_EQ(home, ring.home(a));
  EXPECT_NE(ring.take(a, Home::may_move), home);
  EXPECT_TRUE(ring.live(a) && ring.live(c));
}

TEST_F(SlotsTest, AHomeThatIsTakenAndFixedIsRefusedWithBothNames) {
  Slots ring = slots(2);
  visit(ring, a);
  visit(ring, b);
  ring.take(c, Home::fixed);
  EXPECT_THROW(ring.take(a, Home::fixed), InvalidArgument);
  EXPECT_THAT(message_of([&] { ring.take(a, Home::fixed); }),
              AllOf(HasSubstr("unit 'a'"), HasSubstr("unit 'c'"), HasSubstr("slots=3")));
  EXPECT_TRUE(ring.live(c));
  EXPECT_FALSE(ring.live(a));
}

TEST_F(SlotsTest, MayBeFilledAheadOnlyWhereNobodyLives) {
  Slots ring = slots(2);
  EXPECT_TRUE(ring.free_for(a));
  visit(ring, a);
  visit(ring, b);
  EXPECT_TRUE(ring.free_for(a));
  ring.take(c, Home::fixed);
  EXPECT_TRUE(ring.free_for(c));
  EXPECT_FALSE(ring.free_for(a));
}

TEST_F(SlotsTest, AnEnclosingUnitHasASlotOfItsOwnAndOfItsSize) {
  Slots ring = slots(2);
  ring.take(root, Home::fixed);
  EXPECT_EQ(ring.bytes(), layouts_[root].bytes());
  for (const std::size_t unit : {a, b, c, d}) EXPECT_NE(visit(ring, unit), ring.home(root));
  EXPECT_TRUE(ring.live(root));
  EXPECT_EQ(ring.bytes(), layouts_[root].bytes() + 2 * layouts_[b].bytes());
}

TEST_F(SlotsTest, KnowsWhoseBytesAHomeHoldsAndOfWhichEpoch) {
  Slots ring = slots(2);
  EXPECT_FALSE(ring.holds(a, 0)) << "it has no home yet";
  visit(ring, a);
  EXPECT_FALSE(ring.holds(a, 0)) << "it was not filled yet";
  ring.filled(a, 7, 0);
  EXPECT_TRUE(ring.holds(a, 7));
  EXPECT_FALSE(ring.holds(a, 8));
  visit(ring, b);
  visit(ring, c);
  EXPECT_TRUE(ring.holds(a, 7)) << "c has taken the slot, but not written to it";
  ring.filled(c, 7, 0);
  EXPECT_FALSE(ring.holds(a, 7));
}

TEST_F(SlotsTest, PoisonIsNaNFromEndToEndAndNobodysBytes) {
  Slots ring = slots(2);
  const auto* memory = reinterpret_cast<const float*>(visit(ring, a));
  ring.filled(a, 1, 0);
  ring.poison(a, {});
  for (std::size_t i = 0; i < layouts_[b].numel(); ++i) EXPECT_TRUE(std::isnan(memory[i])) << i;
  EXPECT_FALSE(ring.holds(a, 1));
}

TEST_F(SlotsTest, ReleaseAllFreesWhatIsLiveAndKeepsHomes) {
  Slots ring = slots(2);
  const std::byte* home = ring.take(a, Home::fixed);
  ring.take(a, Home::fixed);
  ring.take(root, Home::fixed);
  ring.release_all({});
  EXPECT_FALSE(ring.live(a) || ring.live(root));
  EXPECT_EQ(ring.take(a, Home::fixed), home);
  ring.release(a);
  EXPECT_FALSE(ring.live(a)) << "takes from before are forgotten";
}

TEST_F(SlotsTest, ARingOfLessThanTwoIsRefused) { EXPECT_THROW(slots(1), InvalidArgument); }

}  // namespace
}  // namespace aliquot
