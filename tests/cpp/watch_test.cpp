// Ranks whose calls wait for nobody, watched.
#include "watch.h"

#include <gtest/gtest.h>

#include <csignal>
#include <memory>
#include <thread>

#include "aliquot/error.h"
#include "call_log.h"
#include "outcomes.h"
#include "watched_host.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using namespace std::chrono_literals;

// As a thread beside the rank does it.
void look_until_it_throws(Watch& watch) {
  const auto end = std::chrono::steady_clock::now() + patience;
  while (std::chrono::steady_clock::now() < end) {
    watch.look();
    std::this_thread::yield();
  }
  throw std::runtime_error("nothing was found");
}

void look_until(Watch& watch, const std::function<bool()>& enough) {
  while (!enough()) watch.look();
}

// Zeros, as it finds them in shared memory.
std::unique_ptr<CallLog> empty_log() { return std::unique_ptr<CallLog>(new CallLog()); }

Envelope call_of(std::string_view unit) { return make_envelope("all_gather", {"gather", unit}, 64); }

TEST(CallLog, NumbersItsCallsAndFindsThem) {
  const auto log = empty_log();
  EXPECT_EQ(log->size(), 0u);
  EXPECT_FALSE(log->find(0));
  EXPECT_FALSE(log->find(1));
  log->add(call_of("blocks.0"));
  log->add(call_of("blocks.1"));
  EXPECT_EQ(log->size(), 2u);
  ASSERT_TRUE(log->find(2));
  EXPECT_EQ(to_text(log->find(2)->call), R"(all_gather "gather" of unit "blocks.1" (size 64, call 2))");
}

TEST(CallLog, ForgetsTheOldest) {
  const auto log = empty_log();
  for (std::size_t i = 0; i <= CallLog::depth; ++i) log->add(call_of("blocks.0"));
  EXPECT_FALSE(log->find(1));
  EXPECT_TRUE(log->find(2));
  EXPECT_TRUE(log->find(CallLog::depth + 1));
}

TEST(CallLog, TheDigestTellsHistoriesApart) {
  const auto one = empty_log(), same = empty_log(), other = empty_log();
  for (const char* unit : {"a", "b", "c"}) one->add(call_of(unit)), same->add(call_of(unit));
  for (const char* unit : {"a", "x", "c"}) other->add(call_of(unit));
  EXPECT_EQ(one->find(3)->digest, same->find(3)->digest);
  EXPECT_EQ(one->find(1)->digest, other->find(1)->digest);
  EXPECT_EQ(one->find(3)->call, other->find(3)->call);
  EXPECT_NE(one->find(3)->digest, other->find(3)->digest);
}

TEST(CallLog, AReaderBesideTheWriterSeesWholeRecords) {
  const auto log = empty_log();
  constexpr std::uint64_t calls = 50'000;
  std::jthread writer([&] {
    for (std::uint64_t i = 1; i <= calls; ++i) log->add(make_envelope("all_gather", {"gather", "unit"}, i));
  });
  while (log->size() < calls) {
    const std::uint64_t oldest = log->size() > CallLog::depth ? log->size() - CallLog::depth + 1 : 1;
    for (const std::uint64_t number : {log->size(), oldest}) {
      if (const auto record = log->find(number)) {
        ASSERT_EQ(record->call.size, number);
        ASSERT_EQ(record->call.sequence, number);
      }
    }
  }
}

class WatchOver : public testing::TestWithParam<Ranks> {};
INSTANTIATE_TEST_SUITE_P(Worlds, WatchOver, testing::Values(Ranks::threads, Ranks::processes),
                         [](const auto& info) { return name_of(info.param); });

TEST_P(WatchOver, EqualCallsAreFine) {
  expect_success(run(GetParam(), 3, [](Communicator& control) {
    Watch watch(control);
    for (int i = 0; i < 10'000; ++i) {
      watch.say("all_gather", {"gather", std::to_string(i % 7)}, 8);
      if (i % 100 == 0) watch.look();
    }
    control.barrier({"said", ""});
    watch.look();
    control.barrier({"looked", ""});
  }));
}

TEST_P(WatchOver, NamesTheFirstCallsThatDiffer) {
  const auto outcomes = run(GetParam(), 3, [](Communicator& control) {
    Watch watch(control);
    for (const char* unit : {"a", "b", control.rank() == 2 ? "other" : "c", "d"})
      watch.say("all_gather", {"gather", unit}, 8);
    control.barrier({"said", ""});
    rethrow_as_text<CommunicatorError>([&] { look_until_it_throws(watch); });
  });
  for (const std::size_t r : {0u, 1u, 2u}) {
    const std::string with = r == 1 ? "rank 1" : "rank 0";
    expect_each_says({outcomes[r]},
                     {"ranks disagree: " + with + R"( calls all_gather "gather" of unit "c" (size 8, call 3))",
                      R"(rank 2 calls all_gather "gather" of unit "other" (size 8, call 3))"});
  }
}

TEST_P(WatchOver, SaysSoIfTheCallsThatDifferAreForgotten) {
  const auto outcomes = run(GetParam(), 2, [](Communicator& control) {
    Watch watch(control);
    watch.say("all_gather", {"gather", control.rank() == 0 ? "a" : "b"}, 8);
    for (std::size_t i = 0; i < CallLog::depth; ++i) watch.say("all_gather", {"gather", "c"}, 8);
    control.barrier({"said", ""});
    rethrow_as_text<CommunicatorError>([&] { look_until_it_throws(watch); });
  });
  expect_each_says(outcomes, {"made different calls between call 0 and call 4097"});
}

TEST_P(WatchOver, ARankMayRunFarAhead) {
  expect_success(run(GetParam(), 2, [](Communicator& control) {
    Watch watch(control);
    const auto make_calls = [&] {
      for (std::size_t i = 0; i < 3 * CallLog::depth; ++i) watch.say("all_gather", {"gather", "c"}, 8);
    };
    if (control.rank() == 0) make_calls();
    control.barrier({"one is ahead", ""});
    watch.look();
    if (control.rank() == 1) make_calls();
    control.barrier({"both are", ""});
    watch.look();
    control.barrier({"looked", ""});
  }));
}

TEST_P(WatchOver, ARankThatStaysBehindIsNamed) {
  const auto outcomes = run(
      GetParam(), 2,
      [](Communicator& control) {
        Watch watch(control);
        const PeerMemory memory = control.share(64);
        auto& told = *reinterpret_cast<Signal*>(memory.part(0));
        watch.say("all_gather", {"gather", "a"}, 8);
        while (control.rank() == 1 && !reached(told, 1)) std::this_thread::yield();  // a wait here would end in time
        if (control.rank() == 1) return;
        watch.say("all_gather", {"gather", "b"}, 8);
        const std::string message = message_of([&] { look_until_it_throws(watch); });
        control.post(told, 1);
        throw std::runtime_error(message);
      },
      300ms);
  expect_each_says({outcomes[0]}, {R"(rank 0 waited for all_gather "gather" of unit "b" (size 8, call 2))", "300 ms",
                                   "not arrived: rank 1, which has made 1 calls"});
}

TEST_P(WatchOver, ARankThatLeavesIsMissedOnlyByThoseWhoNeedIt) {
  const auto outcomes = run(GetParam(), 2, [](Communicator& control) {
    Watch watch(control);
    watch.say("all_gather", {"gather", "a"}, 8);
    if (control.rank() == 1) return watch.leave();
    const auto gone = [&] {
      try {
        control.barrier({"end", ""});
      } catch (const PeerLost&) {
        return true;
      }
      return false;
    };
    require(gone(), "rank 1 stayed");
    watch.look();
    watch.say("reduce_scatter", {"reduce", "a"}, 8);
    rethrow_as_text<PeerLost>([&] { look_until_it_throws(watch); });
  });
  expect_success({outcomes[1]});
}

TEST_P(WatchOver, AnAbortIsHeard) {
  const auto outcomes = run(GetParam(), 2, [](Communicator& control) {
    Watch watch(control);
    control.barrier({"start", ""});
    if (control.rank() == 1) control.abort("no more");
    rethrow_as_text<CommunicatorError>([&] { look_until_it_throws(watch); });
  });
  expect_each_says(outcomes, {"rank 1 aborted: no more"});
}

TEST(Watch, AKilledRankIsNamedThoughNobodyWaitsForIt) {
  const auto outcomes = run_processes(2, [](Communicator& control) {
    Watch watch(control);
    control.barrier({"start", ""});
    if (control.rank() == 1) raise(SIGKILL);
    try {
      look_until_it_throws(watch);
    } catch (const PeerLost& lost) {
      require(lost.rank() == 1, lost.what());
      throw std::runtime_error("named");
    }
  });
  EXPECT_EQ(outcomes[0].message, "named");
  EXPECT_EQ(outcomes[1].signal, SIGKILL);
}

TEST_P(WatchOver, ACallOnTheHostIsOneOfTheCalls) {
  const auto outcomes = run(GetParam(), 2, [](Communicator& control) {
    Watch watch(control);
    WatchedHost host(control, watch, control);
    host.barrier({"both", ""});
    std::jthread beside([&](const std::stop_token& stop) {
      try {
        look_until(watch, [&] { return stop.stop_requested(); });
      } catch (const CommunicatorError& error) {
        control.abort(error.what());
      }
    });
    if (control.rank() == 1) rethrow_as_text<CommunicatorError>([&] { host.barrier({"step", ""}); });
    watch.say("all_gather", {"gather", "a"}, 8);
    rethrow_as_text<CommunicatorError>([&] { look_until_it_throws(watch); });
  });
  expect_each_says(outcomes, {"ranks disagree", R"(rank 0 calls all_gather "gather" of unit "a" (size 8, call 2))",
                              R"(rank 1 calls barrier "step" (size 0, call 2))"});
}

TEST_P(WatchOver, NobodyGetsPastABarrierByOtherCalls) {
  const auto outcomes = run(GetParam(), 3, [](Communicator& control) {
    Watch watch(control);
    WatchedHost host(control, watch, control);
    watch.say("all_gather", {"gather", control.rank() == 2 ? "b" : "a"}, 8);
    rethrow_as_text<CommunicatorError>([&] { host.barrier({"checkpoint", ""}); });
  });
  for (const std::size_t r : {0u, 1u, 2u}) {
    const std::string with = r == 1 ? "rank 1" : "rank 0";
    expect_each_says({outcomes[r]}, {"ranks disagree: " + with + R"( calls all_gather "gather" of unit "a")",
                                     R"(rank 2 calls all_gather "gather" of unit "b" (size 8, call 1))"});
  }
}

}  // namespace
}  // namespace aliquot
