#include "launcher.h"

#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <future>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/transports.h"
#include "outcomes.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

TEST(Launcher, DoesWorkInTheOrderOfTheCallsBehindItsStart) {
  std::vector<int> done;
  Launcher launcher([&] { done.push_back(0); });
  for (int i = 1; i < 100; ++i) launcher.give([&done, i] { done.push_back(i); });
  launcher.await(Communicator::every_launch);
  std::vector<int> expected(100);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(done, expected);
}

TEST(Launcher, AwaitsNoMoreThanIsAskedFor) {
  std::promise<void> gate;
  int first = 0;
  Launcher launcher([] {});
  const auto number = launcher.give([&] { first = 1; });
  launcher.give([gone = gate.get_future().share()] { gone.wait(); });
  launcher.await(number);
  EXPECT_EQ(first, 1);
  gate.set_value();
}

TEST(Launcher, ThrowsWhatFailedAgainAndAgainAndDoesNothingBehindIt) {
  bool reached = false;
  Launcher launcher([] {});
  const auto before = launcher.give([] {});
  launcher.await(before);
  launcher.give([] { throw std::runtime_error("the device is gone"); });
  const auto behind = launcher.give([&] { reached = true; });
  for (int time = 0; time < 2; ++time) {
    EXPECT_EQ(message_of([&] { launcher.await(behind); }), "the device is gone");
  }
  EXPECT_FALSE(reached);
}

TEST(Launcher, IsDrainedBehindAFailedWorkWithoutDoingTheRest) {
  bool reached = false;
  Launcher launcher([] {});
  EXPECT_FALSE(launcher.failed());
  launcher.give([] { throw std::runtime_error("the device is gone"); });
  launcher.give([&] { reached = true; });
  launcher.drain();
  EXPECT_TRUE(launcher.failed());
  EXPECT_FALSE(reached);
}

TEST(Launcher, IsNotThroughWhenAnInterruptEndsAnAwaitButWhenDrained) {
  std::promise<void> gate;
  bool done = false;
  Launcher launcher([] {});
  launcher.give([&done, gone = gate.get_future().share()] {
    gone.wait();
    done = true;
  });
  set_interrupt_check([] { throw std::runtime_error("Ctrl-C"); });
  EXPECT_EQ(message_of([&] { launcher.await(Communicator::every_launch); }), "Ctrl-C");
  set_interrupt_check({});
  EXPECT_FALSE(launcher.failed());
  gate.set_value();
  launcher.drain();
  EXPECT_TRUE(done);
}

TEST(Launcher, WorkMayAwaitWorkBeforeIt) {
  bool here = false;
  Launcher launcher([] {});
  launcher.give([&] {
    launcher.await(Communicator::every_launch);
    launcher.drain();
    here = Launcher::here();
  });
  launcher.await(Communicator::every_launch);
  EXPECT_TRUE(here);
  EXPECT_FALSE(Launcher::here());
}

TEST(Launcher, DoesWhatItWasGivenBeforeItEnds) {
  int done = 0;
  {
    Launcher launcher([] {});
    for (int i = 0; i < 10; ++i) launcher.give([&] { ++done; });
  }
  EXPECT_EQ(done, 10);
}

TEST(Launcher, OfAForkedProcessEndsWithoutItsThread) {
  EXPECT_EXIT(
      {
        Launcher launcher([] {});
        launcher.await(1);
        const pid_t child = fork();
        if (child == 0) {
          launcher.~Launcher();
          _exit(7);
        }
        int status = 0;
        waitpid(child, &status, 0);
        _exit(WEXITSTATUS(status));
      },
      testing::ExitedWithCode(7), "");
}

}  // namespace
}  // namespace aliquot
