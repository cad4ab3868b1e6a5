// The transport peer where something goes wrong with what it alone has: meetings, graphs, and peers' memory. The rest
// is in nccl_faults_test.cpp.
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <functional>
#include <string>
#include <vector>

#include "aliquot/error.h"
#include "captured.h"
#include "gpu_ranks.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto promised = 5s;

/// The error that `fault` ends in; throws if that takes longer than promised.
template <typename Kind>
void tell_error_in_time(const std::function<void()>& fault, Clock::duration longest = promised) {
  const auto begin = Clock::now();
  const std::string message = error_of<Kind>(fault);
  require(Clock::now() - begin < longest, "too late: " + message);
  throw std::runtime_error(message);
}

class PeerFaults : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device";
  }
  static std::vector<Outcome> run(const GpuBody& body, std::chrono::milliseconds timeout = 20s) {
    return run_on_gpus(2, body, timeout, GpuTransport::peer);
  }
};

TEST_F(PeerFaults, AnAbortEndsAMeeting) {
  const auto outcomes = run([](GpuRank& rank) {
    tell_error_in_time<CommunicatorError>([&] {
      if (rank.communicator.rank() == 1) {
        rank.communicator.abort("out of data");
      } else {
        rank.communicator.meet({"step", ""}, 0, rank.stream.get());
      }
      await_error(rank);
    });
  });
  expect_each_says(outcomes, {"rank 1 aborted: out of data"});
}

TEST_F(PeerFaults, ARankThatLeavesIsNamedByThoseWhoMeetIt) {
  const auto outcomes = run([](GpuRank& rank) {
    if (rank.communicator.rank() == 1) return rank.communicator.leave();
    tell_error_in_time<PeerLost>([&] {
      rank.communicator.meet({"step", ""}, 3, rank.stream.get());
      await_error(rank);
    });
  });
  expect_each_says({outcomes[0]}, {"rank 1 has left", R"(meet "step")"});
  expect_success({outcomes[1]});
}

TEST_F(PeerFaults, RanksThatMeetOnDifferentChannelsAreBothNamed) {
  const auto outcomes = run([](GpuRank& rank) {
    tell_error_in_time<CommunicatorError>([&] {
      rank.communicator.meet({"step", ""}, rank.communicator.rank(), rank.stream.get());
      await_error(rank);
    });
  });
  expect_each_says(outcomes, {"ranks disagree", R"(meet "step" (size 0)", R"(meet "step" (size 1)"});
}

TEST_F(PeerFaults, ARankThatDoesNotComeIsNamedAfterTheTimeout) {
  const auto outcomes = run(
      [](GpuRank& rank) {
        if (rank.communicator.rank() == 0) rank.communicator.meet({"step", ""}, 0, rank.stream.get());
        tell_error_in_time<CommunicatorError>([&] { await_error(rank); }, 2s + promised);
      },
      2s);
  expect_each_says(outcomes, {"not arrived: rank 1"});
}

// The host makes no calls in a replay, so only the device can tell.
TEST_F(PeerFaults, ARankThatDoesNotReplayItsGraphIsNamedAfterTheTimeout) {
  const auto outcomes = run(
      [](GpuRank& rank) {
        const Captured graph(rank.stream.get(), [&] { rank.communicator.meet({"step", ""}, 5, rank.stream.get()); });
        rank.communicator.barrier({"captured", ""});
        const int replays = rank.communicator.rank() == 0 ? 4 : 3;
        for (int i = 0; i < replays; ++i) graph.replay(rank.stream.get());
        tell_error_in_time<CommunicatorError>([&] { await_error(rank); }, 8s + promised);
      },
      8s);  // which is also how long a rank may take to start
  expect_each_says(outcomes, {"a stream of rank 0 waited for its peers", "not arrived: rank 1"});
}

TEST_F(PeerFaults, AMeetingAfterTheEndThrowsTheReason) {
  const auto outcomes = run([](GpuRank& rank) {
    if (rank.communicator.rank() == 1) rank.communicator.abort("out of data");
    const std::string first = error_of<CommunicatorError>([&] { await_error(rank); });
    rethrow_as_text<CommunicatorError>([&] { rank.communicator.meet({"step", ""}, 0, rank.stream.get()); });
    require(first.find("out of data") != std::string::npos, first);
  });
  expect_each_says(outcomes, {"rank 1 aborted: out of data"});
}

/// Copies from a peer until an error ends it.
void read_on(GpuRank& rank, const std::byte* theirs, const GpuBytes& copy) {
  while (true) {
    copy_async(copy.data(), theirs, copy.span().size(), rank.stream.get());
    synchronize(rank.stream.get());
    rank.communicator.require_intact();
  }
}

TEST(PeerProcesses, AKilledRankIsNamedAndItsMemoryCanStillBeRead) {
  if (gpus_that_a_fork_sees() == 0) GTEST_SKIP() << "needs a GPU, and to be the first test of its process";
  constexpr std::size_t count = 64 << 20;
  const auto outcomes = run_processes(2, [](const KeyValueStore& store, int number) {
    alarm(60);
    const auto body = [](GpuRank& rank) {
      const auto memory = rank.communicator.registrable_memory();
      const Buffer piece(*memory, count);
      const auto registration = rank.communicator.register_memory({piece.data(), piece.bytes()});
      const GpuBytes copy(rank, count);
      fill_async(piece.data(), static_cast<std::uint8_t>(rank.communicator.rank() + 1), count, rank.stream.get());
      rank.communicator.meet({"written", ""}, 0, rank.stream.get());
      synchronize(rank.stream.get());
      rank.communicator.barrier({"written", ""});
      if (rank.communicator.rank() == 1) raise(SIGKILL);
      const std::byte* const theirs = rank.communicator.peer(1, piece.data());
      tell_error_in_time<PeerLost>([&] {
        const std::string message = error_of<PeerLost>([&] { read_on(rank, theirs, copy); });
        copy_async(copy.data(), theirs, count, rank.stream.get());
        require(copy.values(rank.stream.get()) == std::vector<std::byte>(count, std::byte{2}), "other bytes");
        throw PeerLost(1, message);
      });
    };
    live_on_gpu(make_shared_memory_communicator(store, "test", number, 2, patience), body, GpuTransport::peer);
  });
  EXPECT_EQ(outcomes[1].signal, SIGKILL);
  expect_each_says({outcomes[0]}, {"rank 1", "is gone"});
}

TEST(PeerProcesses, AKilledRankEndsAMeetingThatWaitsForIt) {
  if (gpus_that_a_fork_sees() == 0) GTEST_SKIP() << "needs a GPU, and to be the first test of its process";
  const auto outcomes = run_processes(2, [](const KeyValueStore& store, int number) {
    alarm(60);
    const auto body = [](GpuRank& rank) {
      const GpuBytes part(rank, 1 << 20), whole(rank, 2 << 20);
      rank.communicator.all_gather({"gather", ""}, part.span(), whole.data(), rank.stream.get());
      synchronize(rank.stream.get());
      rank.communicator.barrier({"warm", ""});
      if (rank.communicator.rank() == 1) raise(SIGKILL);
      tell_error_in_time<PeerLost>([&] {
        rank.communicator.all_gather({"gather", ""}, part.span(), whole.data(), rank.stream.get());
        await_error(rank);
      });
    };
    live_on_gpu(make_shared_memory_communicator(store, "test", number, 2, patience), body, GpuTransport::peer);
  });
  EXPECT_EQ(outcomes[1].signal, SIGKILL);
  expect_each_says({outcomes[0]}, {"rank 1", "is gone"});
}

}  // namespace
}  // namespace aliquot
