#include "aliquot/loss_scale.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "toy_training.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

constexpr ScaleRule rule{.growth_factor = 2, .backoff_factor = 0.25, .growth_interval = 2};

static_assert(LossScale{8, 0, 0}.updated(rule) == LossScale{8, 1, 0});
static_assert(LossScale{8, 1, 0}.updated(rule) == LossScale{16, 0, 0});
static_assert(LossScale{8, 1, 1}.updated(rule) == LossScale{2, 0, 0});

TEST(LossScale, StopsGrowingBeforeItIsInfinite) {
  constexpr float largest = std::numeric_limits<float>::max();
  EXPECT_EQ((LossScale{largest, 1, 0}.updated(rule)), (LossScale{largest, 0, 0}));
}

// A power of 2 changes no bit: gradients are multiplied with it here, and the engine takes it out.
TEST(LossScale, IsTakenOutOfNormsAndUpdates) {
  run_world(Transport::one_sided_threads, 2, [](Communicator& communicator) {
    constexpr float scale = 1024;
    ToyTraining plain(communicator, {.stage = Stage(2), .gatherer = {}}),
        scaled(communicator, {.stage = Stage(2), .gatherer = {}});
    scaled.engine.set_loss_scale({scale});
    scaled.tamper = [](std::size_t, std::size_t, std::vector<float>& gradient) {
      for (float& value : gradient) value *= scale;
    };
    for (std::size_t step = 0; step < 5; ++step) {
      require(plain.step(step).grad_norm == scaled.step(step).grad_norm, "another norm");
    }
    require(same_bits(plain.parameters(), scaled.parameters()), "other parameters");
    communicator.barrier({"end", ""});
  });
}

TEST(LossScale, MovesOnEveryRankWhereOneOverflows) {
  run_world(Transport::one_sided_threads, 2, [](Communicator& communicator) {
    ToyTraining training(communicator, {.stage = Stage(3), .gatherer = {}});
    training.engine.set_loss_scale({64});
    bool overflows = false;
    training.tamper = [&](std::size_t, std::size_t, std::vector<float>& gradient) {
      if (overflows && communicator.rank() == 1 && !gradient.empty()) gradient[0] = std::nanf("");
    };
    LossScale expected{64};
    for (std::size_t step = 1; step <= 12; ++step) {
      overflows = step % 4 == 0;
      const std::vector<float> before = training.parameters();
      require(training.step(step).skipped == overflows, "a step should be skipped if a gradient overflows");
      require(same_bits(before, training.parameters()) == overflows, "a skipped step changes nothing");
      expected.overflow = overflows ? 1 : 0;
      require(training.engine.loss_scale() == expected, "the overflow should be known");
      training.engine.update_loss_scale(rule);
      expected = expected.updated(rule);
      require(training.engine.loss_scale() == expected, "another scale");
    }
    communicator.barrier({"end", ""});
  });
}

}  // namespace
}  // namespace aliquot
