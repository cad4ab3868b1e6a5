// Ranks that map no memory of each other, watched: what they call travels over a control channel.
#include <gtest/gtest.h>

#include <atomic>
#include <csignal>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "aliquot/error.h"
#include "channels_of_ranks.h"
#include "two_sided.h"
#include "watch.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using namespace std::chrono_literals;

/// What joins ranks of different hosts, as the core sees it: a rank that gives up says so over the channel.
class Apart final : public TwoSided {
 public:
  Apart(Communicator& inner, ControlChannel& channel) : TwoSided(inner), channel_(channel) {}
  void require_intact() override { channel_.require_intact(); }
  void abort(std::string_view reason) noexcept override { channel_.announce(reason); }

 private:
  ControlChannel& channel_;
};

using Body = std::function<void(Communicator& control, ControlChannel& channel)>;

/// Each rank in a thread. `members` are those of the channel's ranks whom the communicator joins; all others only stay.
std::vector<std::string> run_apart(int world_size, const Body& body, std::chrono::milliseconds timeout = patience,
                                   RankNames members = {}) {
  const int joined = (world_size - members.first + members.stride - 1) / members.stride;
  const auto controls = make_thread_communicators(joined, timeout, members);
  return run_channels(world_size, [&](ControlChannel& channel) {
    const int place = channel.rank() - members.first;
    if (place >= 0 && place % members.stride == 0) {
      Apart control(*controls[static_cast<std::size_t>(place / members.stride)], channel);
      body(control, channel);
    }
    channel.all_gather("end", "", patience);
  });
}

/// As the thread beside a rank does it.
void look_until(Watch& watch, Communicator& control, const std::function<bool()>& enough) try {
  while (!enough()) {
    watch.look();
    std::this_thread::sleep_for(1ms);
  }
} catch (const std::exception& error) {
  control.abort(error.what());
  throw;
}

void look_until_it_throws(Watch& watch, Communicator& control) {
  const auto end = std::chrono::steady_clock::now() + patience;
  look_until(watch, control, [&] { return std::chrono::steady_clock::now() > end; });
  throw std::runtime_error("nothing was found");
}

/// Looks while the ranks come to a barrier, so that nobody is gone before his last words are heard.
void end_together(Watch& watch, Communicator& control, ControlChannel& channel) {
  std::atomic<bool> over = false;
  std::jthread meeting([&] {
    channel.all_gather("looked", "", patience);
    over = true;
  });
  look_until(watch, control, [&] { return over.load(); });
}

void expect_all_say(const std::vector<std::string>& messages, const std::vector<std::string>& parts) {
  for (std::size_t r = 0; r < messages.size(); ++r) {
    for (const std::string& part : parts) {
      EXPECT_NE(messages[r].find(part), std::string::npos) << "rank " << r << ": " << messages[r];
    }
  }
}

TEST(CallMail, EqualCallsAreFine) {
  const auto messages = run_apart(3, [](Communicator& control, ControlChannel& channel) {
    Watch watch(control, &channel);
    for (int i = 0; i < 10'000; ++i) {
      watch.say("all_gather", {"gather", std::to_string(i % 7)}, 8);
      if (i % 1000 == control.rank()) watch.look();
    }
    end_together(watch, control, channel);
  });
  expect_all_say(messages, {});
  for (const std::string& message : messages) EXPECT_EQ(message, "");
}

// What is told of itself is only the latest call; those before are asked for.
TEST(CallMail, NamesTheFirstCallsThatDifferHoweverFarTheRanksHaveCome) {
  for (const int culprit : {0, 1, 2}) {
    const auto messages = run_apart(3, [&](Communicator& control, ControlChannel& channel) {
      Watch watch(control, &channel);
      for (const char* unit : {"a", "b", control.rank() == culprit ? "other" : "c"}) {
        watch.say("all_gather", {"gather", unit}, 8);
      }
      for (int i = 0; i < 500 * (1 + control.rank()); ++i) watch.say("all_gather", {"gather", "d"}, 8);
      rethrow_as_text<CommunicatorError>([&] { look_until_it_throws(watch, control); });
    });
    const std::string told = "rank " + std::to_string(culprit);
    expect_all_say(messages, {"ranks disagree: rank 0 calls all_gather \"gather\" of unit",
                              told + (culprit == 0 ? " calls" : R"( calls all_gather "gather" of unit "other")"),
                              R"(unit "other" (size 8, call 3))", R"(unit "c" (size 8, call 3))"});
  }
}

TEST(CallMail, NobodyGetsPastABarrierByOtherCalls) {
  const auto messages = run_apart(2, [](Communicator& control, ControlChannel& channel) {
    Watch watch(control, &channel);
    watch.say("all_gather", {"gather", control.rank() == 1 ? "b" : "a"}, 8);
    watch.say("barrier", {"checkpoint", ""}, 0);
    rethrow_as_text<CommunicatorError>([&] { watch.require_agreement({"checkpoint", ""}); });
  });
  expect_all_say(messages, {"ranks disagree", R"(rank 0 calls all_gather "gather" of unit "a" (size 8, call 1))",
                            R"(rank 1 calls all_gather "gather" of unit "b" (size 8, call 1))"});
}

TEST(CallMail, CallsRanksByTheirNamesInTheWorld) {
  const auto messages = run_apart(4,
                                  [](Communicator& control, ControlChannel& channel) {
                                    Watch watch(control, &channel);
                                    watch.say("all_gather", {"gather", control.rank() == 0 ? "a" : "b"}, 8);
                                    rethrow_as_text<CommunicatorError>([&] { look_until_it_throws(watch, control); });
                                  },
                                  patience, {.first = 1, .stride = 2});
  expect_all_say({messages[1], messages[3]}, {R"(rank 1 calls all_gather "gather" of unit "a")",
                                              R"(rank 3 calls all_gather "gather" of unit "b")"});
}

TEST(CallMail, SaysSoIfTheCallsThatDifferAreForgotten) {
  const auto messages = run_apart(2, [](Communicator& control, ControlChannel& channel) {
    Watch watch(control, &channel);
    watch.say("all_gather", {"gather", control.rank() == 0 ? "a" : "b"}, 8);
    for (std::size_t i = 0; i < CallLog::depth; ++i) watch.say("all_gather", {"gather", "c"}, 8);
    rethrow_as_text<CommunicatorError>([&] { look_until_it_throws(watch, control); });
  });
  expect_all_say(messages, {"made different calls between call 0 and call 4097"});
}

TEST(CallMail, ARankThatStaysBehindIsNamed) {
  const auto messages = run_apart(
      2,
      [](Communicator& control, ControlChannel& channel) {
        Watch watch(control, &channel);
        watch.say("all_gather", {"gather", "a"}, 8);
        if (control.rank() == 1) watch.say("all_gather", {"gather", "b"}, 8);
        rethrow_as_text<CommunicatorError>([&] { look_until_it_throws(watch, control); });
      },
      300ms);
  expect_all_say(messages, {R"(rank 1 waited for all_gather "gather" of unit "b" (size 8, call 2))", "300 ms",
                            "not arrived: rank 0, which has made 1 calls"});
}

TEST(CallMail, ARankThatLeavesIsMissedOnlyByThoseWhoNeedIt) {
  const auto messages = run_apart(2, [](Communicator& control, ControlChannel& channel) {
    Watch watch(control, &channel);
    watch.say("all_gather", {"gather", "a"}, 8);
    if (control.rank() == 1) {
      watch.leave();
      channel.all_gather("one has left", "", patience);
      return;
    }
    channel.all_gather("one has left", "", patience);
    for (int i = 0; i < 3; ++i) watch.look();
    watch.say("reduce_scatter", {"reduce", "a"}, 8);
    rethrow_as_text<PeerLost>([&] { look_until_it_throws(watch, control); });
  });
  expect_all_say({messages[0]}, {"rank 1 has left", R"(rank 0 waited for reduce_scatter "reduce" of unit "a")"});
}

TEST(CallMail, AnAbortIsHeard) {
  const auto messages = run_apart(3, [](Communicator& control, ControlChannel& channel) {
    Watch watch(control, &channel);
    if (control.rank() == 1) control.abort("no more");
    rethrow_as_text<PeerLost>([&] { look_until_it_throws(watch, control); });
  });
  expect_all_say(messages, {"rank 1 gave up: no more"});
}

TEST(CallMail, ALostRankIsTheReasonForWhatElseGoesWrong) {
  const auto outcomes = run_processes(2, [](const KeyValueStore& store, int rank) {
    ControlChannel channel(store, "channel", rank, 2, with_patience(patience));
    const auto inner = make_shared_memory_communicator(store, "test", rank, 2, patience);
    Apart control(*inner, channel);
    Watch watch(control, &channel);
    if (rank == 1) raise(SIGKILL);
    rethrow_as_text<PeerLost>([&] { watch.look_for_reason(); });
  });
  EXPECT_EQ(outcomes[1].signal, SIGKILL);
  expect_each_says({outcomes[0]}, {"rank 1", "is gone"});
}

TEST(CallMail, CallsThatDifferAreTheReasonForWhatElseGoesWrong) {
  const auto messages = run_apart(2, [](Communicator& control, ControlChannel& channel) {
    Watch watch(control, &channel);
    watch.say("all_gather", {"gather", control.rank() == 1 ? "b" : "a"}, 8);
    try {
      watch.look_for_reason();
    } catch (const CommunicatorError& error) {
      control.abort(error.what());
      throw std::runtime_error(error.what());
    }
  });
  expect_all_say(messages, {"ranks disagree: rank 0 calls all_gather", "rank 1 calls all_gather"});
}

TEST(CallMail, NeedsAChannelThatKnowsTheRanksByTheSameNames) {
  const auto messages = run_apart(2, [](Communicator& control, ControlChannel& channel) {
    require(error_of<InvalidArgument>([&] { const Watch watch(control); }).find("one-sided communicator") !=
                std::string::npos,
            "without a channel");
    const auto others = make_thread_communicators(1, patience, {.first = 7});
    Apart strangers(*others[0], channel);
    require(error_of<InvalidArgument>([&] { const Watch watch(strangers, &channel); }).find("the same names") !=
                std::string::npos,
            "with another's");
  });
  for (const std::string& message : messages) EXPECT_EQ(message, "");
}

}  // namespace
}  // namespace aliquot
