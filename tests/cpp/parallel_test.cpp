#include "aliquot/parallel.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <latch>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "aliquot/error.h"

namespace aliquot {
namespace {

using Pieces = std::vector<std::pair<std::size_t, std::size_t>>;

Pieces pieces_of(std::size_t count, std::size_t grain) {
  std::mutex mutex;
  Pieces pieces;
  parallel_for(count, grain, [&](std::size_t begin, std::size_t end) {
    std::lock_guard lock(mutex);
    pieces.emplace_back(begin, end);
  });
  std::sort(pieces.begin(), pieces.end());
  return pieces;
}

/// Returns only if two threads are in a body at the same time.
void meet_in_two_bodies() {
  std::latch both(2);
  parallel_for(2, 1, [&](std::size_t, std::size_t) { both.arrive_and_wait(); });
}

class Parallel : public testing::TestWithParam<int> {
 protected:
  void SetUp() override { set_thread_count(GetParam()); }
  void TearDown() override { set_thread_count(before_); }

 private:
  const int before_ = thread_count();
};

INSTANTIATE_TEST_SUITE_P(Threads, Parallel, testing::Values(1, 2, 5));

TEST_P(Parallel, CutsPiecesByGrainAlone) {
  EXPECT_EQ(pieces_of(0, 4), Pieces{});
  EXPECT_EQ(pieces_of(3, 4), (Pieces{{0, 3}}));
  EXPECT_EQ(pieces_of(4, 4), (Pieces{{0, 4}}));
  EXPECT_EQ(pieces_of(10, 4), (Pieces{{0, 4}, {4, 8}, {8, 10}}));
  EXPECT_EQ(pieces_of(7, SIZE_MAX), (Pieces{{0, 7}}));
  EXPECT_EQ(pieces_of(10'000, 1).size(), 10'000u);
}

TEST_P(Parallel, RunsNestedCallsInline) {
  std::atomic<int> inner_elements = 0;
  parallel_for(8, 1, [&](std::size_t, std::size_t) {
    const auto outer = std::this_thread::get_id();
    for (int again = 0; again < 2; ++again) {
      parallel_for(5, 2, [&](std::size_t begin, std::size_t end) {
        EXPECT_EQ(std::this_thread::get_id(), outer);
        inner_elements += static_cast<int>(end - begin);
      });
    }
  });
  EXPECT_EQ(inner_elements, 80);
}

TEST_P(Parallel, RethrowsAndGoesOn) {
  std::atomic<int> inside = 0;
  const auto fail_at_3 = [&](std::size_t begin, std::size_t) {
    ++inside;
    const bool fail = begin == 3;
    --inside;
    if (fail) throw std::runtime_error("piece 3");
  };
  for (int again = 0; again < 20; ++again) {
    EXPECT_THROW(parallel_for(100, 1, fail_at_3), std::runtime_error);
    EXPECT_EQ(inside, 0);
    EXPECT_EQ(pieces_of(10, 3).size(), 4u);
  }
}

TEST_P(Parallel, ServesSeveralCallersAtOnce) {
  std::vector<std::thread> callers;
  std::atomic<std::size_t> total = 0;
  for (int caller = 0; caller < 6; ++caller) {
    callers.emplace_back([&] {
      for (int again = 0; again < 100; ++again) {
        parallel_for(1000, 10, [&](std::size_t begin, std::size_t end) { total += end - begin; });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total, 600'000u);
}

TEST_P(Parallel, WorksInAForkedChild) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "gcc's address sanitizer forks with its allocator's lock held by whoever had it";
#endif
  pieces_of(100, 1);  // the parent has its threads
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(60);
    if (thread_count() > 1) meet_in_two_bodies();
    _exit(pieces_of(100, 1).size() == 100 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(pieces_of(100, 1).size(), 100u);
}

TEST(ThreadCount, IsHowManyThreadsRunBodies) {
  set_thread_count(2);
  meet_in_two_bodies();
  EXPECT_EQ(thread_count(), 2);
}

TEST(ThreadCount, RefusesNoThreadsAndNoGrain) {
  EXPECT_THROW(set_thread_count(0), InvalidArgument);
  EXPECT_THROW(set_thread_count(-1), InvalidArgument);
  EXPECT_THROW(parallel_for(1, 0, [](std::size_t, std::size_t) {}), InvalidArgument);
}

/// `exit_code` is 10 + thread_count() of a new process with OMP_NUM_THREADS=`variable`.
void expect_exit_code(const char* variable, testing::ExitedWithCode exit_code) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // runs the program anew
  setenv("OMP_NUM_THREADS", variable, 1);
  EXPECT_EXIT(std::_Exit(10 + thread_count()), exit_code, "") << variable;
}

TEST(ThreadCountDeathTest, BeginsAsTheLauncherSays) {
  expect_exit_code("3", testing::ExitedWithCode(13));
  expect_exit_code("5,2", testing::ExitedWithCode(15));
}

TEST(ThreadCountDeathTest, BeginsAsTheAffinityMaskWhereTheLauncherSaysNothingOfUse) {
  cpu_set_t mask;
  ASSERT_EQ(sched_getaffinity(0, sizeof mask, &mask), 0);
  for (const char* variable : {"", "0", "many"}) {
    expect_exit_code(variable, testing::ExitedWithCode(10 + CPU_COUNT(&mask)));
  }
}

}  // namespace
}  // namespace aliquot
