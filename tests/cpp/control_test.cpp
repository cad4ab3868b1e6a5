// Ranks of a control channel: as threads where they talk, as processes where they die or freeze.
#include "aliquot/control.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <csignal>
#include <future>
#include <latch>

#include "aliquot/error.h"
#include "outcomes.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using namespace std::chrono_literals;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using ChannelBody = std::function<void(ControlChannel&)>;

ControlOptions with_patience(std::chrono::milliseconds patience) { return {.patience = patience, .timeout = 60s}; }

/// Each rank's body in a thread, with its channel, which ends with the body.
std::vector<std::string> run_channels(int world_size, const ChannelBody& body, const ControlOptions& options = {}) {
  const DirectoryStore directory;
  std::vector<std::string> messages(static_cast<std::size_t>(world_size));
  std::vector<std::jthread> threads;
  for (int rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      messages[static_cast<std::size_t>(rank)] = message_of([&] {
        ControlChannel channel(directory.store(), "test", rank, world_size, options);
        body(channel);
      });
    });
  }
  threads.clear();
  return messages;
}

/// The same in processes. SIGALRM ends what hangs.
std::vector<Outcome> run_channel_processes(int world_size, std::chrono::milliseconds patience,
                                           const ChannelBody& body) {
  return run_processes(world_size, [&](const KeyValueStore& store, int rank) {
    alarm(60);
    ControlChannel channel(store, "test", rank, world_size, with_patience(patience));
    body(channel);
  });
}

std::string numbered(const std::string& text, int rank) { return text + std::to_string(rank); }

TEST(ControlChannel, GathersWhatEachRankGives) {
  const auto messages = run_channels(4, [](ControlChannel& channel) {
    const std::string mine(static_cast<std::size_t>(channel.rank()) * 100'000, static_cast<char>('a' + channel.rank()));
    const auto all = channel.all_gather("sizes", mine, 60s);
    for (int r = 0; r < 4; ++r) {
      const std::string& theirs = all.at(static_cast<std::size_t>(r));
      require(theirs == std::string(static_cast<std::size_t>(r) * 100'000, static_cast<char>('a' + r)), "wrong");
    }
  });
  EXPECT_THAT(messages, ElementsAre("", "", "", ""));
}

}  // namespace
}  // namespace aliquot
