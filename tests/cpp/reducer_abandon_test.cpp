#include <gtest/gtest.h>

#include <array>
#include <string>

#include "reducer_rank.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

// One rank begins, and gives up; its peers are told at once, whatever they were doing.
TEST(ReducerAbandon, FailsThePeersOnceAndTheNextMicroStepIsRight) {
  run_world(Transport::one_sided_threads, 3, [](Communicator& communicator) {
    Rank rank(communicator, many_units());
    rank.micro_step(0);
    for (int round = 1; round < 20; ++round) {
      if (communicator.rank() == round % 3) {
        rank.reducer.offer(4, gradients_of(rank.store.layout(4).unit(), 4, communicator.rank(), round).pointers());
      } else {
        const std::string message = message_of([&] { rank.micro_step(round); });
        require(message.find("gave up the backward pass") != std::string::npos, "got: " + message);
        require(message.find("aliquot.reset_step(model)") != std::string::npos, "got: " + message);
      }
      rank.reducer.abandon();
      rank.micro_step(round);
      rank.require_sum_of(std::array{round});
    }
  });
}

TEST(ReducerAbandon, BeforeAnythingWasOfferedFailsThePeersToo) {
  run_world(Transport::one_sided_threads, 3, [](Communicator& communicator) {
    Rank rank(communicator, toy_units());
    if (communicator.rank() != 1) {
      const std::string message = message_of([&] { rank.micro_step(0); });
      // Of the ranks that wait, one may hear of it from the other.
      require(message.find("gave up the backward pass") != std::string::npos, "got: " + message);
    }
    rank.reducer.abandon();
    rank.micro_step(0);
    rank.require_sum_of(std::array{0});
  });
}

TEST(ReducerAbandon, OfTwoSidedRanksForgetsWhatWasSummed) {
  run_world(Transport::two_sided_threads, 3, [](Communicator& communicator) {
    Rank rank(communicator, toy_units());
    rank.micro_step(0);
    rank.reducer.offer(5, gradients_of(rank.store.layout(5).unit(), 5, communicator.rank(), 1).pointers());
    rank.reducer.abandon();
    rank.micro_step(2);
    rank.require_sum_of(std::array{2});
  });
}

}  // namespace
}  // namespace aliquot
