#include "aliquot/optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>

#include "rules.h"
#include "toy_units.h"
#include "worlds.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

// The rule as it is, and with half the learning rate.
std::vector<Rule> groups_of(Rule rule) {
  std::vector<Rule> groups{rule};
  std::visit([](auto& one) { one.lr *= 0.5; }, rule);
  groups.push_back(rule);
  return groups;
}

constexpr float grad_scale = 0.5F;
constexpr int step_count = 8;

// Parameters of toy_units() alternate between the groups; head.bias is in none.
Grouping grouping() {
  Grouping made;
  for (const UnitSpec& unit : toy_units()) {
    std::vector<int>& of_unit = made.emplace_back();
    for (const ParamSpec& param : unit.params) {
      of_unit.push_back(param.name == "head.bias" ? no_group : static_cast<int>(of_unit.size() % 2));
    }
  }
  return made;
}

// In each step another parameter has no gradient.
Presence presence(int step) {
  Presence present;
  int seen = 0;
  for (const UnitSpec& unit : toy_units()) {
    std::vector<bool>& of_unit = present.emplace_back();
    for (std::size_t param = 0; param < unit.params.size(); ++param) of_unit.push_back(++seen % 5 != step % 5);
  }
  return present;
}

std::size_t u(int number) { return static_cast<std::size_t>(number); }

// Values of a whole unit, padding included.
std::vector<float> unit_numbers(const Layout& layout, std::size_t unit, int step) {
  return numbers({unit, u(step)}, layout.numel());
}

void fill(const ShardStore& store, Role role, int step) {
  for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
    if (!store.holds(unit, role)) continue;
    const Range held = store.held_range(unit, role);
    const std::vector<float> values = unit_numbers(store.layout(unit), unit, step);
    std::ranges::copy(std::span(values).subspan(held.begin, held.size()), store.block(unit, role).data());
  }
}

void train(ShardStore& store, Optimizer& optimizer, const Rule& rule) {
  fill(store, Role::param, 0);
  for (int step = 1; step <= step_count; ++step) {
    fill(store, Role::grad, step);
    optimizer.step(groups_of(rule), presence(step), grad_scale);
  }
}

std::vector<ReferenceElement> expected_param(const Layout& layout, std::size_t unit, std::size_t param,
                                             const Rule& rule) {
  const Range range = layout.param(param);
  const std::vector<float> first = unit_numbers(layout, unit, 0);
  std::vector<ReferenceElement> elements;
  for (std::size_t i = range.begin; i < range.end; ++i) elements.push_back({first[i]});
  for (int step = 1; step <= step_count; ++step) {
    const int group = grouping()[unit][param];
    if (!layout.unit().trainable || group == no_group || !presence(step)[unit][param]) continue;
    const std::vector<float> grad = unit_numbers(layout, unit, step);
    std::vector<double> grads;
    for (std::size_t i = range.begin; i < range.end; ++i) grads.push_back(double{grad_scale} * grad[i]);
    step_param(elements, groups_of(rule)[u(group)], grads);
  }
  return elements;
}

void require_near(double got, double expected, const std::string& what) {
  require(std::abs(got - expected) <= 1e-5 * std::max(0.1, std::abs(expected)),
          what + " is " + std::to_string(got) + ", expected " + std::to_string(expected));
}

class Optimizers : public ::testing::TestWithParam<std::tuple<int, Rule>> {
 protected:
  static const Rule& rule() { return std::get<Rule>(GetParam()); }
  static Stage stage() { return Stage(std::get<int>(GetParam())); }

  static void run(const std::function<void(Communicator&, ShardStore&, Optimizer&)>& body) {
    run_world(Transport::one_sided_threads, 3, [&](Communicator& communicator) {
      ShardStore store(toy_units(), stage(), communicator, host_memory());
      Optimizer optimizer(store, communicator, host_memory(), grouping(), rule());
      body(communicator, store, optimizer);
      communicator.barrier({"end", ""});
    });
  }
};

// At stages 1 and 2 a rank steps its shard of whole parameters: what the states' shard covers is compared.
TEST_P(Optimizers, EqualTheReferenceInDoublePrecision) {
  run([](Communicator&, ShardStore& store, Optimizer& optimizer) {
    train(store, optimizer, rule());
    for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
      for (const Segment& part : store.layout(unit).segments(store.stepped_range(unit))) {
        const auto expected = expected_param(store.layout(unit), unit, part.param, rule());
        const std::size_t begin = part.range.begin - store.layout(unit).param(part.param).begin;
        const std::string where = store.layout(unit).unit().params[part.param].name;
        for (std::size_t i = 0; i < part.range.size(); ++i) {
          ReferenceElement element = expected[begin + i];
          require_near(store.held_part(unit, Role::param, part.range)[i], element.param, where);
          for (const Role role : states_of(rule())) {
            require_near(store.held_part(unit, role, part.range)[i], element.states[role], where);
          }
        }
      }
    }
  });
}

TEST_P(Optimizers, CountStepsByParameter) {
  run([](Communicator&, ShardStore& store, Optimizer& optimizer) {
    train(store, optimizer, rule());
    for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
      for (std::size_t param = 0; param < store.layout(unit).unit().params.size(); ++param) {
        int expected = 0;
        const bool steps = store.layout(unit).unit().trainable && grouping()[unit][param] != no_group;
        for (int step = 1; step <= step_count; ++step) expected += steps && presence(step)[unit][param] ? 1 : 0;
        require(optimizer.steps(unit, param) == expected, "steps of " + store.layout(unit).unit().params[param].name);
      }
    }
  });
}

// Everything that a step must not write: padding, absent parameters, those of no group, units that do not train.
TEST_P(Optimizers, LeaveTheRestBitwiseAsItWas) {
  run([](Communicator&, ShardStore& store, Optimizer& optimizer) {
    train(store, optimizer, rule());
    std::map<std::pair<std::size_t, Role>, std::vector<float>> before;
    for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
      for (const Role role : all_roles) {
        if (!store.holds(unit, role)) continue;
        fill(store, Role::grad, 99);
        const auto block = store.block(unit, role);
        before[{unit, role}] = {block.begin(), block.end()};
      }
    }
    const Presence present = presence(2);
    optimizer.step(groups_of(rule()), present, grad_scale);
    for (const auto& [key, values] : before) {
      const auto& [unit, role] = key;
      std::vector<float> expected = values;
      const Range held = store.held_range(unit, role);
      const Range stepped = role == Role::grad ? Range{} : store.stepped_range(unit);
      for (const Segment& part : store.layout(unit).segments(stepped)) {
        if (!present[unit][part.param] || grouping()[unit][part.param] == no_group) continue;
        std::ranges::copy(store.held_part(unit, role, part.range), &expected[part.range.begin - held.begin]);
      }
      require(same_bits(store.block(unit, role), expected),
              std::string(name_of(role)) + " of unit '" + store.layout(unit).unit().name + "' was written to");
    }
  });
}

// The counts and states of an optimizer that was told another grouping are those of one that had it all along.
TEST_P(Optimizers, GoOnWithOtherGroups) {
  run([](Communicator& communicator, ShardStore& store, Optimizer& optimizer) {
    ShardStore undisturbed(toy_units(), stage(), communicator, host_memory());
    Optimizer other(undisturbed, communicator, host_memory(), grouping(), rule());
    train(undisturbed, other, rule());
    Grouping none = grouping();
    for (std::vector<int>& unit : none) std::ranges::fill(unit, no_group);
    optimizer.regroup(none);
    fill(store, Role::param, 0);
    fill(store, Role::grad, 1);
    optimizer.step(groups_of(rule()), presence(1), grad_scale);
    optimizer.regroup(grouping());
    train(store, optimizer, rule());
    for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
      for (const Role role : all_roles) {
        if (!store.holds(unit, role)) continue;
        require(same_bits(store.block(unit, role), undisturbed.block(unit, role)), std::string(name_of(role)));
      }
    }
  });
}

TEST_P(Optimizers, BeginWithStatesOfZero) {
  run([](Communicator& communicator, ShardStore& store, Optimizer& optimizer) {
    train(store, optimizer, rule());
    const Optimizer again(store, communicator, host_memory(), grouping(), rule());
    for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
      for (const Role role : states_of(rule())) {
        if (!store.holds(unit, role)) continue;
        require(std::ranges::all_of(store.block(unit, role), [](float value) { return value == 0; }), "old states");
      }
    }
  });
}

// Of a rule that steps by norms, too: they are added over the same parts at every stage.
TEST_P(Optimizers, GiveTheBitsOfStage0) {
  run([](Communicator& communicator, ShardStore& store, Optimizer& optimizer) {
    ShardStore whole(toy_units(), Stage(0), communicator, host_memory());
    Optimizer of_whole(whole, communicator, host_memory(), grouping(), rule());
    train(store, optimizer, rule());
    train(whole, of_whole, rule());
    for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
      for (const Segment& part : store.layout(unit).segments(store.stepped_range(unit))) {
        require(
            same_bits(store.held_part(unit, Role::param, part.range), whole.held_part(unit, Role::param, part.range)),
            store.layout(unit).unit().params[part.param].name);
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Optimizer, Optimizers,
                         ::testing::Combine(::testing::Range(0, 4), ::testing::ValuesIn(all_rules())),
                         [](const auto& with) {
                           return name_of_rule({std::get<Rule>(with.param), with.index}) + "_stage_" +
                                  std::to_string(std::get<int>(with.param));
                         });

TEST(Optimizer, TakesRulesOfOneKind) {
  const std::vector<Rule> mixed{AdamW(), Lion()};
  EXPECT_THROW(require_rules(mixed, 2, AdamW()), InvalidArgument);
  EXPECT_THROW(require_rules(std::span(mixed).first(1), 2, AdamW()), InvalidArgument);
  require_rules(std::span(mixed).first(1), 1, AdamW());
}

TEST(ClipFactor, BringsTheNormDownToItsLimit) {
  EXPECT_FLOAT_EQ(clip_factor(10, 1), 0.1F);
  EXPECT_EQ(clip_factor(0.5, 1), 1.0F);
  EXPECT_EQ(clip_factor(0, 1), 1.0F);
  EXPECT_EQ(clip_factor(5, 0), 0.0F);
}

}  // namespace
}  // namespace aliquot
