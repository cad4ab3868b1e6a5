#include "aliquot/shard_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "aliquot/error.h"
#include "aliquot/optimizer.h"
#include "toy_units.h"
#include "worlds.h"

namespace aliquot {
namespace {

using ::testing::HasSubstr;
using namespace test;  // NOLINT(google-build-using-namespace)

constexpr std::size_t frozen = 2;  // of toy_units

class Stores : public ::testing::TestWithParam<std::tuple<Transport, int>> {
 protected:
  Stage stage() const { return Stage(std::get<1>(GetParam())); }

  void run(const std::function<void(Communicator&, ShardStore&)>& body) const {
    run_world(std::get<0>(GetParam()), 3, [&](Communicator& communicator) {
      ShardStore store(toy_units(), stage(), communicator, host_memory());
      store.hold_states(AdamW::states, host_memory());
      body(communicator, store);
      communicator.barrier({"end", ""});
    });
  }
};

void for_each_block(const ShardStore& store, const std::function<void(std::size_t unit, Role role)>& body) {
  for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
    for (const Role role : all_roles) {
      if (store.holds(unit, role)) body(unit, role);
    }
  }
}

TEST_P(Stores, BlocksAreZeroedAndAsLongAsTheStageSays) {
  run([&](Communicator& communicator, const ShardStore& store) {
    const bool states = stage().shards_states();
    const std::map<Role, bool> sharded{{Role::param, stage().shards_parameters()},
                                       {Role::grad, stage().shards_gradients()},
                                       {Role::exp_avg, states},
                                       {Role::exp_avg_sq, states}};
    for_each_block(store, [&](std::size_t unit, Role role) {
      const Layout& layout = store.layout(unit);
      const bool shard = sharded.at(role);
      const Range held = shard ? layout.shard(communicator.rank()) : Range{0, layout.numel()};
      require(store.block(unit, role).size() == held.size(), "another length");
      require(store.held_range(unit, role) == held, "another range");
      require(std::ranges::count(store.block(unit, role), 0.0F) == static_cast<std::ptrdiff_t>(held.size()),
              "a new block should be zeros");
    });
  });
}

TEST_P(Stores, OwnAndHeldPartLieInTheBlock) {
  run([&](Communicator& communicator, const ShardStore& store) {
    for_each_block(store, [&](std::size_t unit, Role role) {
      const Range shard = store.layout(unit).shard(communicator.rank());
      const Range held = store.held_range(unit, role);
      const float* block = store.block(unit, role).data();
      require(store.own(unit, role).size() == shard.size(), "own is one shard");
      require(store.own(unit, role).data() == block + (shard.begin - held.begin), "own lies elsewhere");
      const std::span<float> part = store.held_part(unit, role, {shard.begin, shard.end + 1000});
      require(part.size() <= held.end - shard.begin, "a part beyond what is held");
      require(part.empty() || part.data() == store.own(unit, role).data(), "held_part lies elsewhere");
      require(store.held_part(unit, role, {held.end, held.end + 5}).empty(), "nothing is held behind the end");
    });
  });
}

TEST_P(Stores, BytesAddUp) {
  run([&](Communicator&, const ShardStore& store) {
    std::map<std::string_view, std::size_t> expected;
    for (const Role role : all_roles) expected[name_of(role)] = 0;
    for_each_block(
        store, [&](std::size_t unit, Role role) { expected[name_of(role)] += store.block(unit, role).size_bytes(); });
    require(store.bytes() == expected, "bytes() is not the sum of the blocks");
    require(expected["exp_avg"] == expected["exp_avg_sq"], "the moments are alike");
  });
}

TEST_P(Stores, HoldNoStatesBeforeAnOptimizerAsks) {
  run([&](Communicator& communicator, const ShardStore&) {
    ShardStore store(toy_units(), stage(), communicator, host_memory());
    require(store.bytes()["exp_avg"] == 0 && !store.holds(0, Role::exp_avg), "states of nobody");
    const std::string message = message_of([&] { store.block(0, Role::exp_avg); });
    require(message.find("no optimizer asked for exp_avg") != std::string::npos, "got: " + message);
  });
}

TEST_P(Stores, HoldTheStatesThatTheLastOptimizerAskedFor) {
  run([&](Communicator&, ShardStore& store) {
    std::ranges::fill(store.block(0, Role::exp_avg), 1.0F);
    store.hold_states(std::array{Role::exp_avg}, host_memory());
    require(!store.holds(0, Role::exp_avg_sq) && store.bytes()["exp_avg_sq"] == 0, "a state that nobody wants");
    const std::span<const float> state = store.block(0, Role::exp_avg);
    require(std::ranges::count(state, 0.0F) == static_cast<std::ptrdiff_t>(state.size()), "an old state");
  });
}

TEST_P(Stores, AUnitThatDoesNotTrainHasParametersOnly) {
  run([&](Communicator&, const ShardStore& store) {
    require(store.holds(frozen, Role::param), "its parameters are held");
    for (const Role role : {Role::grad, Role::exp_avg, Role::exp_avg_sq}) {
      require(!store.holds(frozen, role), "it should hold no " + std::string(name_of(role)));
      const std::string message = message_of([&] { store.block(frozen, role); });
      require(message.find("'table' does not train") != std::string::npos, "got: " + message);
    }
  });
}

std::span<const float> floats_in(const std::byte* bytes, std::size_t count) {
  return {reinterpret_cast<const float*>(bytes), count};
}

TEST_P(Stores, PeersReadWhatOwnersWroteWhereTheTransportIsOneSided) {
  run([&](Communicator& communicator, const ShardStore& store) {
    if (!communicator.one_sided()) return;
    const auto written = [](std::size_t unit, int rank) {
      return numbers({unit, static_cast<std::size_t>(rank)}, 1)[0];
    };
    for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
      std::ranges::fill(store.own(unit, Role::param), written(unit, communicator.rank()));
    }
    communicator.barrier({"written", ""});
    for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
      for (int owner = 0; owner < communicator.world_size(); ++owner) {
        const Range range = store.layout(unit).shard(owner);
        const std::vector<float> expected(range.size(), written(unit, owner));
        const std::span<const std::byte> shard = store.peer(unit, Role::param, owner);
        require(same_bits(floats_in(shard.data(), range.size()), expected), "another rank's shard");
        if (!stage().shards_parameters()) continue;
        const std::byte* const mapped = store.mapped(unit) + range.begin * sizeof(float);
        require(same_bits(floats_in(mapped, range.size()), expected), "the mapping differs");
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(ShardStore, Stores, every_transport_and_stage(), name_of_case);

TEST(ShardStore, RefusesFormatsThatDoNotGoTogether) {
  const auto communicators = make_thread_communicators(1);
  UnitSpec unit{.name = "blocks.4", .params = {{"weight", 8}}, .dtype = DType::fp16};
  const auto refusal = [&](MasterForm master, DType gradients) {
    const StoreOptions options{.master = master, .gradients = gradients, .transient = {}};
    return message_of([&] { ShardStore({unit}, Stage(3), *communicators[0], host_memory(), options); });
  };
  EXPECT_THAT(refusal(MasterForm::low16, DType::fp32),
              AllOf(HasSubstr("blocks.4"), HasSubstr("fp16"), HasSubstr("an fp32 master")));
  EXPECT_THAT(refusal(MasterForm::fp32, DType::bf16),
              AllOf(HasSubstr("blocks.4"), HasSubstr("CPUs keep them in fp32")));
  EXPECT_EQ(refusal(MasterForm::fp32, DType::fp32), "");
  unit.trainable = false;
  EXPECT_EQ(refusal(MasterForm::low16, DType::bf16), "");
}

TEST(ShardStore, KeepsWhatTheMasterFormSays) {
  const auto communicators = make_thread_communicators(1);
  for (const MasterForm master : {MasterForm::low16, MasterForm::fp32}) {
    ShardStore store(toy_units(DType::bf16), Stage(3), *communicators[0], host_memory(),
                     {.master = master, .transient = {}});
    store.hold_states(AdamW::states, host_memory());
    std::size_t elements = 0, trained = 0;
    for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
      elements += store.layout(unit).numel();
      if (unit != frozen) trained += store.layout(unit).numel();
    }
    const std::map<std::string_view, std::size_t> expected{{"param", 2 * elements},
                                                           {"master", (master == MasterForm::low16 ? 2 : 4) * trained},
                                                           {"grad", 4 * trained},
                                                           {"exp_avg", 4 * trained},
                                                           {"exp_avg_sq", 4 * trained},
                                                           {"momentum_buffer", 0},
                                                           {"sum", 0}};
    EXPECT_EQ(store.bytes(), expected);
  }
}

}  // namespace
}  // namespace aliquot
