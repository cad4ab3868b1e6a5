#include "side_by_side.h"

#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "outcomes.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

TEST(SideBySide, DoesEachNumberOnce) {
  for (const std::size_t count : {0U, 1U, 2U, 100U}) {
    for (const std::size_t workers : {1U, 3U, 8U}) {
      std::vector<std::atomic<int>> done(count);
      side_by_side(count, workers, [&](std::size_t number, std::size_t) { ++done[number]; });
      for (const std::atomic<int>& times : done) EXPECT_EQ(times, 1);
    }
  }
}

TEST(SideBySide, WorkersAreThreadsWithOneNumberAtATime) {
  std::latch both(2);
  std::vector<std::thread::id> threads(2);
  side_by_side(2, 2, [&](std::size_t, std::size_t worker) {
    both.arrive_and_wait();  // for another
    threads[worker] = std::this_thread::get_id();
  });
  EXPECT_NE(threads[0], threads[1]);
  EXPECT_EQ(threads[0], std::this_thread::get_id());
}

TEST(SideBySide, TheErrorOfTheLowestNumberIsRethrown) {
  std::latch both(2);
  const auto fail = [&](std::size_t number, std::size_t) {
    if (number > 1) return;
    both.arrive_and_wait();
    if (number == 0) std::this_thread::yield();  // the other one's is likely to be first
    throw std::runtime_error(std::to_string(number));
  };
  EXPECT_EQ(error_of<std::runtime_error>([&] { side_by_side(100, 2, fail); }), "0");
}

TEST(SideBySide, NoNumberIsBegunBehindAnError) {
  std::atomic<std::size_t> begun = 0;
  const auto fail = [&](std::size_t number, std::size_t) {
    ++begun;
    if (number == 3) throw std::runtime_error("three");
  };
  EXPECT_THROW(side_by_side(100, 1, fail), std::runtime_error);
  EXPECT_EQ(begun, 4U);
}

}  // namespace
}  // namespace aliquot
