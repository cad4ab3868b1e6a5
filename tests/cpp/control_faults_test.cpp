// Ranks of a control channel that die, freeze, fork, are told to end, or are called by strangers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>

#include "aliquot/control.h"
#include "aliquot/error.h"
#include "aliquot/watchdog.h"
#include "channels_of_ranks.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using namespace std::chrono_literals;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr auto never = 60s;

void expect_others_say(const std::vector<Outcome>& outcomes, int culprit, const std::string& what) {
  for (std::size_t r = 0; r < outcomes.size(); ++r) {
    if (static_cast<int>(r) == culprit) continue;
    EXPECT_THAT(outcomes[r].message, AllOf(HasSubstr(numbered("rank ", culprit)), HasSubstr(what))) << "rank " << r;
  }
}

TEST(ControlFaults, ADeadRankIsNamed) {
  for (int victim = 0; victim < 3; ++victim) {
    const auto outcomes = run_channel_processes(3, never, [&](ControlChannel& channel) {
      if (channel.rank() == victim) raise(SIGKILL);
      channel.all_gather("with a dead rank", "", patience);
    });
    expect_others_say(outcomes, victim, "is gone");
  }
}

/// Lets this process go on after it has stopped itself. Sees the stop before, so it is never too early.
class Waker {
 public:
  explicit Waker(std::chrono::milliseconds after) {
    const pid_t sleeper = getpid();
    pid_ = fork();
    if (pid_ != 0) return;
    const auto is_stopped = [&] {
      std::ifstream file("/proc/" + std::to_string(sleeper) + "/stat");
      const std::string text((std::istreambuf_iterator<char>(file)), {});
      return text.find(") T ") != std::string::npos;
    };
    while (!is_stopped()) std::this_thread::sleep_for(1ms);
    std::this_thread::sleep_for(after);
    kill(sleeper, SIGCONT);
    _exit(0);
  }
  ~Waker() { waitpid(pid_, nullptr, 0); }
  Waker(const Waker&) = delete;
  Waker& operator=(const Waker&) = delete;

 private:
  pid_t pid_;
};

// All say the same, also the rank that was frozen, when it wakes.
TEST(ControlFaults, AFrozenRankIsNamedAndBlamesNobodyElse) {
  for (int victim = 0; victim < 3; ++victim) {
    const auto outcomes = run_channel_processes(3, 1s, [&](ControlChannel& channel) {
      if (channel.rank() == victim) {
        const Waker waker(3s);
        raise(SIGSTOP);
      }
      await_fault(channel);
    });
    for (const Outcome& outcome : outcomes) {
      EXPECT_THAT(outcome.message, AllOf(HasSubstr(numbered("rank ", victim)), HasSubstr("is frozen")));
    }
  }
}

// With the transport's own timeout far away.
TEST(ControlFaults, AFaultEndsTheWaitsOfACommunicatorThatFollows) {
  const auto outcomes = run_processes(2, [](const KeyValueStore& store, int rank) {
    alarm(60);
    ControlChannel channel(store, "channel", rank, 2, with_patience(1s));
    const auto communicator = make_shared_memory_communicator(store, "world", rank, 2, never, &channel);
    if (rank == 1) {
      const Waker waker(3s);
      raise(SIGSTOP);
    }
    communicator->barrier({"with a frozen rank", ""});
  });
  for (const Outcome& outcome : outcomes) {
    EXPECT_THAT(outcome.message, AllOf(HasSubstr("rank 1 "), HasSubstr("is frozen")));
  }
}

TEST(ControlFaults, AShortStallIsNoFault) {
  for (int victim = 0; victim < 2; ++victim) {
    const auto outcomes = run_channel_processes(2, 3s, [&](ControlChannel& channel) {
      if (channel.rank() == victim) {
        const Waker waker(1s);
        raise(SIGSTOP);
      }
      channel.all_gather("after the stall", "", patience);
    });
    expect_success(outcomes);
  }
}

// A worker of a data loader outlives its rank for a while, and has all of its files.
TEST(ControlFaults, AForkDoesNotHideADeath) {
  const SharedNumber fork_of_victim;
  const auto outcomes = run_channel_processes(2, never, [&](ControlChannel& channel) {
    if (channel.rank() == 1) {
      const pid_t forked = fork();
      if (forked == 0) {
        alarm(60);
        pause();
      }
      *fork_of_victim = forked;
      raise(SIGKILL);
    }
    const std::string text = error_of<PeerLost>([&] { await_fault(channel); });
    kill(static_cast<pid_t>((*fork_of_victim).load()), SIGKILL);
    throw std::runtime_error(text);
  });
  expect_others_say(outcomes, 1, "is gone");
}

TEST(ControlFaults, AForkMayDestroyTheChannel) {
  const auto outcomes = run_processes(2, [](const KeyValueStore& store, int rank) {
    alarm(60);
    auto channel = std::make_unique<ControlChannel>(store, "test", rank, 2);
    const pid_t forked = fork();
    if (forked == 0) {
      channel.reset();
      _exit(0);
    }
    waitpid(forked, nullptr, 0);
    channel->all_gather("after the fork", "", patience);
  });
  expect_success(outcomes);
}

int exit_code_of(const std::function<void()>& body) {
  const pid_t forked = fork();
  if (forked == 0) {
    alarm(60);
    body();
    _exit(0);
  }
  int status = 0;
  waitpid(forked, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(ControlFaults, WhatDoesNotEndEndsTheProcess) {
  EXPECT_EQ(exit_code_of([] {
              const Watchdog watchdog(10ms, "a test");
              pause();
            }),
            70);
  EXPECT_EQ(exit_code_of([] { const Watchdog watchdog(never, "a test"); }), 0);
}

TEST(ControlFaults, AnAbortThatHangsEndsTheProcess) {
  const DirectoryStore directory;
  EXPECT_EQ(exit_code_of([&] {
              ControlChannel channel(directory.store(), "test", 0, 1);
              const auto hanging = channel.on_fault([](int, const std::string&) { pause(); });
              channel.announce("a fault");
              pause();
            }),
            70);
}

TEST(ControlFaults, TheFirstSigtermIsARequestAndTheSecondTheEnd) {
  const auto outcomes = run_channel_processes(2, never, [](ControlChannel& channel) {
    if (channel.rank() == 1) require(channel.stop_on_terminate(), "SIGTERM had a handler already");
    if (channel.rank() == 1) raise(SIGTERM);
    while (!channel.should_stop()) std::this_thread::yield();
    channel.all_gather("stopped", "", patience);
    if (channel.rank() == 1) require(channel.stop_on_terminate(), "it is this channel's");
    if (channel.rank() == 1) raise(SIGTERM);
  });
  EXPECT_EQ(outcomes[0].message, "");
  EXPECT_EQ(outcomes[0].signal, 0);
  EXPECT_EQ(outcomes[1].signal, SIGTERM);
}

TEST(ControlFaults, AHandlerOfTheProgramsOwnStays) {
  const auto outcomes = run_channel_processes(1, never, [](ControlChannel& channel) {
    static volatile sig_atomic_t caught = 0;
    std::signal(SIGTERM, [](int) { caught = 1; });
    require(!channel.stop_on_terminate(), "took the handler's place");
    raise(SIGTERM);
    require(caught == 1, "the handler was not called");
  });
  expect_success(outcomes);
}

}  // namespace
}  // namespace aliquot
