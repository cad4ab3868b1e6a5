// Where the codes and scales of 8-bit states lie, and that the stage makes no difference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <string>

#include "aliquot/optimizer.h"
#include "aliquot/quantization.h"
#include "toy_units.h"
#include "worlds.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

UnitSpec unit_of(const std::vector<std::size_t>& numels) {
  UnitSpec unit{.name = "unit", .params = {}};
  for (const std::size_t numel : numels) unit.params.push_back({"p" + std::to_string(unit.params.size()), numel});
  return unit;
}

/// The slots of all blocks that lie in what is held from `begin` on.
void add_slots(const Layout& layout, Range shard, std::size_t held_begin, std::multiset<std::size_t>& slots) {
  for (const Segment& segment : layout.segments(shard)) {
    const std::size_t begin = segment.range.begin - held_begin;
    const std::size_t first = scale_slot(begin, segment.param, layout.shard_numel());
    for (std::size_t block = 0; block < block_count(segment.range.size()); ++block) {
      const std::size_t slot = scale_slot(begin + block * quantization_block, segment.param, layout.shard_numel());
      EXPECT_EQ(slot, first + block) << "the blocks of a part lie side by side";
      slots.insert(slot);
    }
  }
}

void expect_distinct(const std::multiset<std::size_t>& slots, const Layout& layout, std::size_t held) {
  EXPECT_EQ(std::set(slots.begin(), slots.end()).size(), slots.size());
  if (slots.empty()) return;
  EXPECT_LT(*slots.rbegin(), scale_slot(held, layout.unit().params.size(), layout.shard_numel()));
}

class ScaleSlots : public testing::TestWithParam<int> {};

TEST_P(ScaleSlots, AreOneForEachBlockWhetherARankHoldsItsShardOrAll) {
  const std::vector<std::vector<std::size_t>> shapes = {
      {1},    {0, 0, 1, 0}, {15, 16, 17}, {255, 256, 257},    {1, 1, 1, 1, 1},          {4099, 1, 0, 64},
      {1021}, {8192},       {16, 8192},   {2, 3, 5, 7, 1300}, {300, 300, 300, 300, 300}};
  for (const auto& shape : shapes) {
    const Layout layout(unit_of(shape), GetParam());
    std::multiset<std::size_t> of_all;
    for (int rank = 0; rank < GetParam(); ++rank) {
      const Range shard = layout.shard(rank);
      std::multiset<std::size_t> of_shard;
      add_slots(layout, shard, shard.begin, of_shard);
      expect_distinct(of_shard, layout, shard.size());
      add_slots(layout, shard, 0, of_all);
    }
    expect_distinct(of_all, layout, layout.numel());
  }
}

INSTANTIATE_TEST_SUITE_P(Worlds, ScaleSlots, testing::Values(1, 2, 3, 7, 64));

constexpr int step_count = 6;

std::vector<UnitSpec> units() {
  std::vector<UnitSpec> made = toy_units();
  made.push_back({.name = "wide", .params = {{"wide.up", 5000}, {"wide.none", 0}, {"wide.down", 2049}}});
  return made;
}

/// Every parameter in one group; in each step another has no gradient.
void train(ShardStore& store, Optimizer& optimizer) {
  for (int step = 0; step <= step_count; ++step) {
    for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
      for (const Role role : {Role::param, Role::grad}) {
        if (!store.holds(unit, role) || (role == Role::param) != (step == 0)) continue;
        const Range held = store.held_range(unit, role);
        const std::vector<float> values = numbers({unit, static_cast<std::size_t>(step)}, store.layout(unit).numel());
        std::ranges::copy(std::span(values).subspan(held.begin, held.size()), store.block(unit, role).data());
      }
    }
    Presence present;
    for (const UnitSpec& unit : units()) {
      for (std::vector<bool>& of_unit = present.emplace_back(); of_unit.size() < unit.params.size();) {
        of_unit.push_back((of_unit.size() + present.size()) % 4 != static_cast<std::size_t>(step) % 4);
      }
    }
    const std::vector<Rule> rules{AdamW8bit{{.lr = 1e-2}}};
    if (step > 0) optimizer.step(rules, present, 0.5F);
  }
}

Grouping one_group() {
  Grouping made;
  for (const UnitSpec& unit : units()) made.emplace_back(unit.params.size(), 0);
  return made;
}

bool same_bytes(std::span<const std::byte> a, std::span<const std::byte> b) { return std::ranges::equal(a, b); }

class QuantizedStages : public testing::TestWithParam<std::tuple<Transport, int>> {};

TEST_P(QuantizedStages, HaveTheCodesAndScalesOfStage0) {
  const auto [transport, stage] = GetParam();
  run_world(transport, 3, [stage = stage](Communicator& communicator) {
    ShardStore store(units(), Stage(stage), communicator, host_memory());
    ShardStore whole(units(), Stage(0), communicator, host_memory());
    Optimizer optimizer(store, communicator, host_memory(), one_group(), AdamW8bit());
    Optimizer of_whole(whole, communicator, host_memory(), one_group(), AdamW8bit());
    train(store, optimizer);
    train(whole, of_whole);
    for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
      if (!store.layout(unit).unit().trainable) continue;
      for (const Segment& part : store.layout(unit).segments(store.layout(unit).shard(communicator.rank()))) {
        const std::string& name = store.layout(unit).unit().params[part.param].name;
        for (const Role role : {Role::param, Role::exp_avg, Role::exp_avg_sq}) {
          require(same_bytes(store.held_bytes(unit, role, part.range), whole.held_bytes(unit, role, part.range)),
                  std::string(name_of(role)) + " of " + name);
          if (role == Role::param) continue;
          require(same_bits(store.scales(unit, role, part), whole.scales(unit, role, part)), "scales of " + name);
        }
      }
    }
    communicator.barrier({"end", ""});
  });
}

TEST_P(QuantizedStages, HoldAByteForEachElementAndAScaleForEachBlock) {
  const auto [transport, stage] = GetParam();
  run_world(transport, 3, [stage = stage](Communicator& communicator) {
    ShardStore store(units(), Stage(stage), communicator, host_memory());
    store.hold_states(AdamW8bit::states, host_memory(), StateForm::quantized);
    std::size_t least = 0, scales = 0;
    for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
      const Range held = store.stepped_range(unit);
      least += held.size() + held.size() / quantization_block * sizeof(float);
      scales += store.layout(unit).unit().params.size() + 3;
      if (!held.empty()) require(store.bytes_of(unit, Role::exp_avg).size() == held.size(), "one code an element");
    }
    const std::size_t bytes = store.bytes()["exp_avg"];
    require(bytes >= least && bytes <= least + scales * sizeof(float), "bytes are " + std::to_string(bytes));
    require(store.bytes()["exp_avg_sq"] == bytes, "the moments are alike");
    communicator.barrier({"end", ""});
  });
}

INSTANTIATE_TEST_SUITE_P(Stages, QuantizedStages, every_transport_and_stage(), name_of_case);

}  // namespace
}  // namespace aliquot
