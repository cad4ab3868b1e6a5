// Ranks that are killed, at moments chosen at random. SIGALRM (ranks.h) ends what would otherwise hang.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <random>
#include <set>
#include <thread>

#include "aliquot/error.h"
#include "aliquot/transports.h"
#include "ranks.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using Clock = std::chrono::steady_clock;

// The contract of Communicator: a dead rank is named within this time.
constexpr std::chrono::seconds promised(2);

std::set<std::string> shared_memory_files() {
  std::set<std::string> files;
  for (const auto& file : std::filesystem::directory_iterator("/dev/shm")) files.insert(file.path().filename());
  return files;
}

// One value that this process and those forked from it share.
class TimeOfDeath {
 public:
  TimeOfDeath()
      : nanoseconds_(static_cast<std::int64_t*>(
            mmap(nullptr, sizeof(std::int64_t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
  ~TimeOfDeath() { munmap(nanoseconds_, sizeof *nanoseconds_); }
  TimeOfDeath(const TimeOfDeath&) = delete;
  TimeOfDeath& operator=(const TimeOfDeath&) = delete;

  void set_now() const { std::atomic_ref(*nanoseconds_).store(Clock::now().time_since_epoch().count()); }
  Clock::duration ago() const {
    return Clock::now().time_since_epoch() - Clock::duration(std::atomic_ref(*nanoseconds_).load());
  }

 private:
  std::int64_t* nanoseconds_;
};

void train_forever(Communicator& communicator) {
  const PeerMemory memory = communicator.share(64);
  const auto signal = [&](int r) -> Signal& { return *reinterpret_cast<Signal*>(memory.part(r)); };
  std::vector<float> data(100'000, 1.0f), part(data.size() / static_cast<std::size_t>(communicator.world_size()));
  for (std::uint32_t epoch = 1;; ++epoch) {
    communicator.post(signal(communicator.rank()), epoch);
    for (int r = 0; r < communicator.world_size(); ++r) {
      communicator.wait_until([&] { return reached(signal(r), epoch); }, "an epoch");
    }
    communicator.reduce_scatter({"reduce", "unit"}, data.data(), part);
    communicator.all_reduce({"norm", ""}, data);
    communicator.barrier({"step", ""});
  }
}

void expect_all_others_name(const std::vector<Outcome>& outcomes, int victim) {
  for (std::size_t r = 0; r < outcomes.size(); ++r) {
    if (static_cast<int>(r) == victim) {
      EXPECT_EQ(outcomes[r].signal, SIGKILL);
    } else {
      EXPECT_EQ(outcomes[r].message, "named rank " + std::to_string(victim)) << "rank " << r;
    }
  }
}

// Turns the PeerLost that `call` throws into the message "named rank R".
void name_the_lost(const std::function<void()>& call, const TimeOfDeath& death) {
  try {
    call();
  } catch (const PeerLost& lost) {
    require(death.ago() < promised, std::string("too late: ") + lost.what());
    require(std::string(lost.what()).find("rank " + std::to_string(lost.rank())) != std::string::npos, lost.what());
    throw std::runtime_error("named rank " + std::to_string(lost.rank()));
  }
}

TEST(PeerLost, NamesARankKilledAtARandomMoment) {
  const auto before = shared_memory_files();
  std::mt19937 random(20240607);  // NOLINT(bugprone-random-generator-seed): the same moments each time
  for (int trial = 0; trial < 50; ++trial) {
    const int world_size = std::uniform_int_distribution(2, 4)(random);
    const int victim = std::uniform_int_distribution(0, world_size - 1)(random);
    const std::chrono::microseconds life(std::uniform_int_distribution(0, 30'000)(random));
    const TimeOfDeath death;
    const auto outcomes = run_processes(world_size, [&](Communicator& communicator) {
      std::jthread killer;
      if (communicator.rank() == victim) {
        killer = std::jthread([&] {
          std::this_thread::sleep_for(life);
          death.set_now();
          raise(SIGKILL);
        });
      }
      name_the_lost([&] { train_forever(communicator); }, death);
    });
    SCOPED_TRACE("trial " + std::to_string(trial));
    expect_all_others_name(outcomes, victim);
  }
  EXPECT_EQ(shared_memory_files(), before);
}

// The others wait for rank 0, which lives and waits for rank 1: they must blame rank 1 all the same.
TEST(PeerLost, NamesTheKilledRankToThoseThatWaitForAnother) {
  const TimeOfDeath death;
  const auto outcomes = run_processes(3, [&](Communicator& communicator) {
    const PeerMemory memory = communicator.share(64);
    communicator.barrier({"start", ""});
    if (communicator.rank() == 1) {
      death.set_now();
      raise(SIGKILL);
    }
    const int awaited = communicator.rank() == 0 ? 1 : 0;
    const auto& signal = *reinterpret_cast<Signal*>(memory.part(awaited));
    name_the_lost([&] { communicator.wait_until([&] { return reached(signal, 1); }, "a gradient"); }, death);
  });
  expect_all_others_name(outcomes, 1);
}

TEST(PeerLost, WhatWasPostedBeforeDeathStillCounts) {
  const auto outcomes = run_processes(2, [&](Communicator& communicator) {
    const PeerMemory memory = communicator.share(64);
    auto& signal = *reinterpret_cast<Signal*>(memory.part(1));
    if (communicator.rank() == 1) {
      communicator.post(signal, 1);
      raise(SIGKILL);
    }
    communicator.wait_until([&] { return reached(signal, 1); }, "the last epoch");
  });
  EXPECT_EQ(outcomes[0].message, "");
  EXPECT_EQ(outcomes[1].signal, SIGKILL);
}

TEST(PeerLost, AJobKilledAltogetherLeavesNothing) {
  const auto before = shared_memory_files();
  const auto outcomes = run_processes(3, [&](Communicator& communicator) {
    const PeerMemory memory = communicator.share(1 << 20);
    communicator.barrier({"start", ""});
    raise(SIGKILL);
  });
  for (const Outcome& outcome : outcomes) EXPECT_EQ(outcome.signal, SIGKILL) << outcome.message;
  EXPECT_EQ(shared_memory_files(), before);
}

}  // namespace
}  // namespace aliquot
