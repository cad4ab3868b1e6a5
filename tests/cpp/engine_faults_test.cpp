// Steps that cannot be taken: they leave every rank as it was, and training goes on as if they had never been tried.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "toy_training.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

constexpr int world_size = 3;
constexpr std::size_t block = 3, head = 5;

std::vector<std::vector<float>> state_of(const ShardStore& store) {
  std::vector<std::vector<float>> state;
  for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
    for (const Role role : {Role::param, Role::exp_avg, Role::exp_avg_sq}) {
      if (!store.holds(unit, role)) continue;
      const auto values = store.block(unit, role);
      state.emplace_back(values.begin(), values.end());
    }
  }
  return state;
}

bool same_bits(const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b) {
  bool same = a.size() == b.size();
  for (std::size_t i = 0; same && i < a.size(); ++i) same = test::same_bits(a[i], b[i]);
  return same;
}

class EngineFaults : public ::testing::TestWithParam<std::tuple<Transport, int>> {
 protected:
  Transport transport() const { return std::get<0>(GetParam()); }

  // Takes steps 0 and 2, with `fault` in between or not: the same bits must come out.
  void expect_no_trace(const std::function<void(Communicator&, ToyTraining&)>& fault) const {
    const EngineOptions options{.stage = Stage(std::get<1>(GetParam())), .gatherer = {.poison = true}};
    run_world(transport(), world_size, [&](Communicator& communicator) {
      ToyTraining training(communicator, options), undisturbed(communicator, options);
      training.step(0);
      undisturbed.step(0);
      fault(communicator, training);
      const StepResult result = training.step(2), expected = undisturbed.step(2);
      require(!result.skipped && result.grad_norm == expected.grad_norm, "another step after the fault");
      require(same_bits(state_of(training.engine.store()), state_of(undisturbed.engine.store())),
              "another state after the fault");
      communicator.barrier({"end", ""});
    });
  }
};

TEST_P(EngineFaults, ANonFiniteGradientIsSkippedAlikeAndNamed) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    expect_no_trace([bad](Communicator& communicator, ToyTraining& training) {
      const auto before = state_of(training.engine.store());
      training.tamper = [&](std::size_t unit, std::size_t param, std::vector<float>& gradient) {
        if (communicator.rank() == 1 && unit == block && param == 0) gradient[300] = bad;
        if (communicator.rank() == 2 && unit == head && param == 0) gradient[0] = bad;
      };
      const StepResult result = training.step(3);
      training.tamper = nullptr;
      require(result.skipped, "the step should be skipped");
      require(result.first_bad == "block.up", "first bad: " + result.first_bad);
      require(same_bits(state_of(training.engine.store()), before), "a skipped step changed the state");
      require(training.engine.statistics().steps.skipped == 1 && training.engine.statistics().steps.steps == 1,
              "counts");
    });
  }
}

// Ranks fail at the same place, as two-sided transports must, or each at its own.
TEST_P(EngineFaults, AnExceptionInBackwardIsForgottenByReset) {
  expect_no_trace([this](Communicator& communicator, ToyTraining& training) {
    const auto visits = [&](int rank) {
      return transport() == Transport::two_sided_threads ? 3u : 2u + static_cast<unsigned>(rank);
    };
    training.forward();
    training.walk_back(1, visits(communicator.rank()));
    training.engine.reset();
  });
}

TEST_P(EngineFaults, AnExceptionInForwardIsForgottenByReset) {
  expect_no_trace([](Communicator& communicator, ToyTraining& training) {
    training.engine.pre_forward(0);
    training.engine.expect_backward(0);
    training.engine.pre_forward(1);
    training.engine.reset();
    communicator.barrier({"reset", ""});
  });
}

TEST_P(EngineFaults, ABackwardThatWasNeverSteppedIsForgottenByReset) {
  expect_no_trace([](Communicator&, ToyTraining& training) {
    training.forward();
    training.backward(1);
    training.engine.reset();
  });
}

TEST_P(EngineFaults, ARankThatGivesUpFailsItsPeersWhichGoOnToo) {
  if (transport() == Transport::two_sided_threads) return;  // peers of a two-sided rank wait for their deadline
  expect_no_trace([](Communicator& communicator, ToyTraining& training) {
    training.forward();
    if (communicator.rank() == 1) {
      training.walk_back(1, 3);
    } else {
      const std::string message = message_of([&] { training.backward(1); });
      require(message.find("gave up the backward pass") != std::string::npos, "got: " + message);
    }
    training.engine.reset();
  });
}

INSTANTIATE_TEST_SUITE_P(Engine, EngineFaults, every_transport_and_stage(), name_of_case);

}  // namespace
}  // namespace aliquot
