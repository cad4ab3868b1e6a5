// Open files that ranks give each other.
#include "descriptors.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <iterator>
#include <string>
#include <vector>

#include "aliquot/error.h"
#include "outcomes.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

Descriptor file_that_says(const std::string& text) {
  Descriptor file(memfd_create("aliquot-test", MFD_CLOEXEC));
  require(file && write(file.number(), text.data(), text.size()) == static_cast<ssize_t>(text.size()), "memfd");
  return file;
}

std::string text_in(const Descriptor& file) {
  std::string text(100, '\0');
  const ssize_t bytes = pread(file.number(), text.data(), text.size(), 0);
  require(bytes >= 0, "pread");
  text.resize(static_cast<std::size_t>(bytes));
  return text;
}

std::ptrdiff_t open_files() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator());
}

/// From here on this process can open `count` more files.
void let_open(std::size_t count) {
  std::vector<Descriptor> next;
  while (next.size() <= count) next.emplace_back(dup(STDERR_FILENO));
  rlimit limit{};
  require(getrlimit(RLIMIT_NOFILE, &limit) == 0, "getrlimit");
  limit.rlim_cur = static_cast<rlim_t>(next.back().number());
  require(setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
}

std::string name_of_rank(int rank) { return "rank " + std::to_string(rank); }

class Descriptors : public testing::TestWithParam<std::tuple<Ranks, int>> {};
// As many ranks as are more than a socket's queue holds.
INSTANTIATE_TEST_SUITE_P(Worlds, Descriptors,
                         testing::Combine(testing::Values(Ranks::threads, Ranks::processes), testing::Values(1, 2, 24)),
                         [](const auto& info) {
                           return name_of(std::get<0>(info.param)) + std::to_string(std::get<1>(info.param));
                         });

TEST_P(Descriptors, EveryRankReadsTheFilesOfAll) {
  const auto [ranks, world_size] = GetParam();
  expect_success(run(ranks, world_size, [](Communicator& communicator) {
    for (int round = 0; round < 3; ++round) {
      const std::string suffix = " in round " + std::to_string(round);
      const Descriptor mine = file_that_says(name_of_rank(communicator.rank()) + suffix);
      const std::vector<Descriptor> all = exchange_descriptors(communicator, mine);
      for (int r = 0; r < communicator.world_size(); ++r) {
        const Descriptor& theirs = all.at(static_cast<std::size_t>(r));
        require(static_cast<bool>(theirs) == (r != communicator.rank()), "this rank's own file came back");
        if (theirs) require(text_in(theirs) == name_of_rank(r) + suffix, text_in(theirs));
      }
    }
  }));
}

TEST(DescriptorExchange, LeavesNothingOpen) {
  expect_success(run(Ranks::processes, 3, [](Communicator& communicator) {
    const auto before = open_files();
    exchange_descriptors(communicator, file_that_says("gone"));
    require(open_files() == before, std::to_string(open_files() - before) + " files stayed open");
  }));
}

TEST(DescriptorExchange, AKilledRankIsNamed) {
  const auto outcomes = run(Ranks::processes, 3, [](Communicator& communicator) {
    if (communicator.rank() == 1) raise(SIGKILL);
    rethrow_as_text<PeerLost>([&] { exchange_descriptors(communicator, file_that_says("hello")); });
  });
  expect_each_says({outcomes[0], outcomes[2]}, {"rank 1"});
}

TEST(DescriptorExchange, ARankThatMayOpenNoMoreFilesIsNamedAndToldWhatToDo) {
  const auto outcomes = run(Ranks::processes, 2, [](Communicator& communicator) {
    const Descriptor mine = file_that_says("hello");
    if (communicator.rank() == 1) let_open(1);  // a socket, and no more
    rethrow_as_text<CommunicatorError>([&] {
      exchange_descriptors(communicator, mine);
      communicator.barrier({"exchanged", ""});
    });
  });
  expect_each_says(outcomes, {"rank 1 has too many open files", "ulimit -n"});
}

}  // namespace
}  // namespace aliquot
