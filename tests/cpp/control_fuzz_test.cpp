// What strangers may say to a control channel: anything. ALIQUOT_FUZZ_SECONDS makes it longer (`make faults`).
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <cstdlib>
#include <latch>
#include <random>

#include "aliquot/control.h"
#include "aliquot/error.h"
#include "channels_of_ranks.h"
#include "doorman.h"
#include "frames.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using namespace std::chrono_literals;
using ::testing::Each;
using ::testing::IsEmpty;

using Clock = std::chrono::steady_clock;

Clock::time_point end_of_fuzzing() {
  const char* const seconds = std::getenv("ALIQUOT_FUZZ_SECONDS");
  return Clock::now() + (seconds == nullptr ? 500ms : std::chrono::seconds(std::atoi(seconds)));
}

using Random = std::mt19937;

std::size_t up_to(Random& random, std::size_t most) {
  return std::uniform_int_distribution<std::size_t>(0, most)(random);
}

/// A greeting or another frame, right, wrong in a few bytes, cut off, or nothing but noise.
std::string speech(Random& random, const std::string& secret) {
  Frame frame = make_frame(Kind::hello, secret, std::uint64_t{1}, std::uint64_t{2});
  if (up_to(random, 2) == 0) frame.kind = static_cast<Kind>(up_to(random, 255));
  if (up_to(random, 4) == 0) frame.body.resize(up_to(random, 200'000));
  std::string bytes = to_bytes(frame);
  for (std::size_t n = up_to(random, 4); n > 0; --n)
    bytes[up_to(random, bytes.size() - 1)] = static_cast<char>(random());
  if (up_to(random, 2) == 0) bytes.resize(up_to(random, bytes.size()));
  return bytes;
}

TEST(ControlFuzz, AReaderOfFramesTakesAnythingAndHoldsNoMoreThanItWasGiven) {
  Random random(7);  // NOLINT(bugprone-random-generator-seed): the same each time
  for (const auto end = end_of_fuzzing(); Clock::now() < end;) {
    FrameReader reader(128);
    const std::string bytes = speech(random, std::string(64, 's'));
    try {
      for (std::size_t at = 0; at < bytes.size();) {
        const std::size_t piece = std::min(bytes.size() - at, 1 + up_to(random, 100));
        reader.add({bytes.data() + at, piece});
        at += piece;
        while (const auto frame = reader.next()) {
          ASSERT_LE(frame->body.size(), 128u);
          BodyReader body(frame->body);
          ASSERT_LE(body.text().size(), frame->body.size());
          body.number();
        }
      }
    } catch (const CommunicatorError&) {  // nothing else may come out
    }
  }
}

/// Speaks to a rank 0 that waits for rank 1; with the right secret it would be taken for it.
class Stranger {
 public:
  explicit Stranger(const std::string& invitation) {
    const std::size_t space = invitation.find(' ');
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(std::stoi(invitation.substr(space + 1))));
    inet_pton(AF_INET, invitation.substr(0, space).c_str(), &address.sin_addr);
    require(connect(socket_.number(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "connect");
  }
  void say(const std::string& bytes) const {
    send(socket_.number(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }

 private:
  UnsharedDescriptor socket_{[] { return socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); }};
};

long peak_kilobytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

TEST(ControlFuzz, StrangersDoNotDisturbTheRanks) {
  const DirectoryStore directory;
  Random random(11);  // NOLINT(bugprone-random-generator-seed): the same each time
  std::jthread other;
  const auto late_ranks = [&](const std::string& invitation) {
    const long before = peak_kilobytes();
    std::list<Stranger> silent;
    for (const auto end = end_of_fuzzing(); Clock::now() < end;) {
      const Stranger stranger(invitation);
      stranger.say(speech(random, std::string(64, 's')));
      if (silent.size() < 200) silent.emplace_back(invitation);
    }
    EXPECT_LT(peak_kilobytes() - before, 64 << 10) << "memory is bounded";
    ControlChannel channel(directory.store(), "test", 1, 2);
    channel.all_gather("among strangers", "", patience);
  };
  const auto first_rank = message_of([&] {
    KeyValueStore store = directory.store();
    const auto set = store.set;
    std::string invitation;
    store.set = [&](const std::string& key, const std::string& value) {
      set(key, value);
      other = std::jthread([&late_ranks, value] { EXPECT_EQ(message_of([&] { late_ranks(value); }), ""); });
    };
    ControlChannel channel(store, "test", 0, 2);
    channel.all_gather("among strangers", "", patience);
  });
  EXPECT_EQ(first_rank, "");
}

}  // namespace
}  // namespace aliquot
