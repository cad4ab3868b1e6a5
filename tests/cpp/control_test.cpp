// What ranks say to each other over a control channel.
#include "aliquot/control.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <latch>
#include <mutex>

#include "aliquot/error.h"
#include "channels_of_ranks.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using namespace std::chrono_literals;
using ::testing::ContainsRegex;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string payload_of(int rank, std::size_t bytes) { return std::string(bytes, static_cast<char>('a' + rank)); }

TEST(ControlChannel, GathersWhatEachRankGives) {
  const auto messages = run_channels(4, [](ControlChannel& channel) {
    const auto length = [](int rank) { return static_cast<std::size_t>(rank) * 300'000; };
    const auto all = channel.all_gather("sizes", payload_of(channel.rank(), length(channel.rank())), patience);
    for (int r = 0; r < 4; ++r)
      require(all[static_cast<std::size_t>(r)] == payload_of(r, length(r)), "not what it gave");
  });
  EXPECT_THAT(messages, Each(IsEmpty()));
}

TEST(ControlChannel, GathersUnderManyNamesAtATime) {
  const auto messages = run_channels(3, [](ControlChannel& channel) {
    std::vector<std::jthread> threads;
    std::vector<std::string> errors(8);
    for (int n = 0; n < 8; ++n) {
      threads.emplace_back([&, n] {
        const std::string name = "name " + std::to_string(channel.rank() % 2 == 0 ? n : 7 - n);
        errors[static_cast<std::size_t>(n)] = message_of([&] {
          for (int turn = 0; turn < 20; ++turn) {
            const auto all = channel.all_gather(name, name + std::to_string(channel.rank() + turn), patience);
            for (int r = 0; r < 3; ++r) {
              require(all[static_cast<std::size_t>(r)] == name + std::to_string(r + turn), "of another round");
            }
          }
        });
      });
    }
    threads.clear();
    for (const std::string& error : errors) require(error.empty(), error);
  });
  EXPECT_THAT(messages, Each(IsEmpty()));
}

TEST(ControlChannel, AloneGathersItsOwn) {
  const auto messages = run_channels(1, [](ControlChannel& channel) {
    require(channel.all_gather("alone", "mine", patience) == std::vector<std::string>{"mine"}, "something else");
    require(!channel.should_stop(), "stops unasked");
  });
  EXPECT_THAT(messages, Each(IsEmpty()));
}

// Also between ranks that have no connection of their own.
TEST(ControlChannel, TellsOneRankWhatItListensFor) {
  const auto messages = run_channels(3, [](ControlChannel& channel) {
    std::mutex mutex;
    std::vector<std::string> heard;
    const auto listening = channel.listen("calls", [&](int from, const std::string& text) {
      const std::lock_guard lock(mutex);
      heard.push_back(numbered("from ", from) + ": " + text);
    });
    const auto deaf = channel.listen("weather", [](int, const std::string&) { std::abort(); });
    channel.all_gather("listening", "", patience);
    for (const int to : {0, 1, 2}) {
      for (const char* text : {"one", "two"}) channel.tell(to, "calls", text + std::to_string(to));
    }
    channel.tell(0, "nobody listens", "");
    const auto all = [&] {
      const std::lock_guard lock(mutex);
      return heard.size() == 6;
    };
    while (!all()) std::this_thread::yield();
    std::ranges::stable_sort(heard, {}, [](const std::string& text) { return text.substr(0, 6); });
    std::vector<std::string> expected;
    for (int from = 0; from < 3; ++from) {
      for (const char* text : {"one", "two"}) {
        expected.push_back(numbered("from ", from) + ": " + text + std::to_string(channel.rank()));
      }
    }
    require(heard == expected, "something else");
  });
  EXPECT_THAT(messages, Each(IsEmpty()));
}

TEST(ControlChannel, NamesTheRanksThatGaveNothingInTime) {
  std::latch over(3);
  const auto messages = run_channels(3, [&](ControlChannel& channel) {
    if (channel.rank() != 1) {
      const std::string error = error_of<CommunicatorError>([&] { channel.all_gather("verdict", "fine", 100ms); });
      EXPECT_THAT(error, HasSubstr("all_gather 'verdict': rank 1 gave nothing in time"));
    }
    over.arrive_and_wait();
    channel.all_gather("another name", "", patience);
  });
  EXPECT_THAT(messages, Each(IsEmpty()));
}

TEST(ControlChannel, ARankThatHasLeftGivesNothing) {
  for (const int leaver : {0, 1}) {
    std::latch over(2);
    const auto messages = run_channels(3, [&](ControlChannel& channel) {
      if (channel.rank() == leaver) return;
      for (int turn = 0; turn < 2; ++turn) {
        const std::string error = error_of<PeerLost>([&] { channel.all_gather("verdict", "fine", patience); });
        EXPECT_THAT(error, ContainsRegex(numbered("rank ", leaver) + ".* has left"));
      }
      channel.require_intact();
      over.arrive_and_wait();
    });
    EXPECT_THAT(messages, Each(IsEmpty()));
  }
}

TEST(ControlChannel, RefusesWhatCannotBeRight) {
  std::latch refused(1);
  const auto messages = run_channels(2, [&](ControlChannel& channel) {
    const std::string much(ControlChannel::longest_payload + 1, 'x');
    EXPECT_THAT(error_of<InvalidArgument>([&] { channel.all_gather("much", much, patience); }), HasSubstr("too many"));
    if (channel.rank() == 0) refused.wait();
    std::vector<std::string> errors(channel.rank() == 0 ? 1 : 2);
    {
      std::vector<std::jthread> threads;
      for (std::string& error : errors) {
        threads.emplace_back([&] {
          error = message_of([&] { channel.all_gather("twice", "", patience); });
          if (!error.empty()) refused.count_down();
        });
      }
    }
    std::ranges::sort(errors);
    EXPECT_EQ(errors.front(), "");
    if (channel.rank() == 1) {
      EXPECT_THAT(errors.back(), HasSubstr("'twice' is under way"));
    }
  });
  EXPECT_THAT(messages, Each(IsEmpty()));
}

TEST(ControlChannel, TellsEveryRankWhatOneAnnounces) {
  for (const int culprit : {0, 2}) {
    const auto messages = run_channels(3, [&](ControlChannel& channel) {
      if (channel.rank() == culprit) channel.announce("ValueError: the batch is empty");
      await_fault(channel);
    });
    EXPECT_THAT(messages, Each(HasSubstr(numbered("rank ", culprit) + " gave up: ValueError: the batch is empty")));
  }
}

TEST(ControlChannel, CallsWhoWantsToKnowOfAFault) {
  const auto messages = run_channels(2, [&](ControlChannel& channel) {
    std::atomic<int> calls = 0;
    std::atomic<bool> forgotten_called = false;
    std::string told;
    auto forgotten = channel.on_fault([&](int, const std::string&) { forgotten_called = true; });
    forgotten.reset();
    const auto early = channel.on_fault([&](int lost, const std::string& text) {
      told = std::to_string(lost) + text;
      ++calls;
      calls.notify_one();
    });
    if (channel.rank() == 1) channel.announce("enough");
    calls.wait(0);
    EXPECT_EQ(told, "1rank 1 gave up: enough");
    const auto late = channel.on_fault([&](int, const std::string&) { ++calls; });
    EXPECT_EQ(calls, 2);
    EXPECT_FALSE(forgotten_called);
    channel.all_gather("after the fault", "", patience);
  });
  EXPECT_THAT(messages, Each(HasSubstr("enough")));
}

// Ranks run ahead of each other; whoever asks, all stop at the same call.
TEST(ControlChannel, AllRanksStopAtTheSameCall) {
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<int> calls(3);
    const auto messages = run_channels(3, [&](ControlChannel& channel) {
      int& mine = calls[static_cast<std::size_t>(channel.rank())];
      do {
        if (channel.rank() == trial % 3 && mine == trial) channel.request_stop();
        ++mine;
      } while (!channel.should_stop());
      EXPECT_TRUE(channel.should_stop());
      channel.all_gather("before it leaves", "", patience);
    });
    EXPECT_THAT(messages, Each(IsEmpty()));
    EXPECT_THAT(calls, Each(calls[0]));
  }
}

TEST(ControlChannel, CountsProgress) {
  const auto messages = run_channels(
      3,
      [](ControlChannel& channel) {
        for (int i = 0; i <= channel.rank(); ++i) channel.advance();
        const auto end = std::chrono::steady_clock::now() + patience;
        while (channel.progress() != std::vector<std::uint64_t>{1, 2, 3}) {
          require(std::chrono::steady_clock::now() < end, "heartbeats don't say how far the ranks are");
          std::this_thread::yield();
        }
        channel.all_gather("seen by all", "", patience);
      },
      with_patience(300ms));
  EXPECT_THAT(messages, Each(IsEmpty()));
}

TEST(ControlChannel, NamesTheRanksThatDoNotJoin) {
  const DirectoryStore directory;
  const ControlOptions hasty{.address = "127.0.0.1", .patience = 10s, .timeout = 100ms};
  EXPECT_THAT(error_of<CommunicatorError>([&] { ControlChannel(directory.store(), "test", 0, 3, hasty); }),
              HasSubstr("not arrived: rank 1, rank 2"));
}

TEST(ControlChannel, ListensOnLoopbackWhereTheAddressIsNotRankZeros) {
  const auto messages = run_channels(2, [](ControlChannel& channel) { channel.all_gather("here", "", patience); },
                                     {.address = "no-such-host.invalid", .patience = 10s, .timeout = patience});
  EXPECT_THAT(messages, Each(IsEmpty()));
}

}  // namespace
}  // namespace aliquot
