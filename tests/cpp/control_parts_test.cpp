// The parts of a control channel that are pure bookkeeping.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "aliquot/error.h"
#include "frames.h"
#include "heartbeats.h"
#include "outcomes.h"
#include "rounds.h"
#include "stop_vote.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using namespace std::chrono_literals;
using ::testing::ElementsAre;

using Clock = std::chrono::steady_clock;
const Clock::time_point start = Clock::time_point(1h);

TEST(Heartbeats, FindWhoIsSilentForLongerThanThePatience) {
  Heartbeats beats(2, 10s, start);
  for (auto now = start; now < start + 10s; now += 1s) {
    beats.hear(0, now);
    beats.look(now);
    EXPECT_FALSE(beats.silent(1));
  }
  EXPECT_EQ(beats.silent_at(1), start + 10s);
  beats.look(start + 10s);
  EXPECT_TRUE(beats.silent(1));
  EXPECT_FALSE(beats.silent(0));
}

TEST(Heartbeats, BlameNobodyForOnesOwnSleep) {
  Heartbeats beats(2, 10s, start);
  beats.look(start + 1s);
  for (auto now = start + 1h; now < start + 1h + 10s; now += 1s) {
    beats.look(now);
    EXPECT_FALSE(beats.silent(1));
  }
  beats.look(start + 1h + 10s);
  EXPECT_TRUE(beats.silent(1)) << "it had as long as ever to say something";
}

TEST(Heartbeats, AreDueTenTimesInThePatienceOrEachSecond) {
  Heartbeats quick(1, 100ms, start), slow(1, 1h, start);
  EXPECT_TRUE(quick.due(start));
  EXPECT_FALSE(quick.due(start + 9ms));
  EXPECT_TRUE(quick.due(start + 10ms));
  EXPECT_TRUE(slow.due(start));
  EXPECT_EQ(slow.next(), start + 1s);
}

TEST(Rounds, AreOverWithTheLastPart) {
  Rounds rounds(2);
  EXPECT_FALSE(rounds.add(1, "a", "one", start));
  EXPECT_FALSE(rounds.add(1, "b", "other", start));
  const auto round = rounds.add(0, "a", "zero", start);
  ASSERT_TRUE(round);
  EXPECT_THAT(round->parts, ElementsAre("zero", "one"));
  EXPECT_FALSE(rounds.add(0, "a", "anew", start)) << "it was forgotten";
}

TEST(Rounds, FailAtTheFirstDeadline) {
  Rounds rounds(3);
  rounds.add(0, "a", "", start + 2s);
  rounds.add(1, "a", "", start + 1s);
  EXPECT_EQ(rounds.next_deadline(start + 1h), start + 1s);
  EXPECT_TRUE(rounds.overdue(start).empty());
  const auto late = rounds.overdue(start + 1s);
  ASSERT_EQ(late.size(), 1u);
  EXPECT_EQ(late[0].first, "a");
  EXPECT_THAT(late[0].second.missing(), ElementsAre(2));
  EXPECT_EQ(rounds.next_deadline(start + 1h), start + 1h);
}

TEST(Rounds, FailWithoutARankThatIsMissing) {
  Rounds rounds(2);
  rounds.add(0, "misses 1", "", start);
  rounds.add(1, "misses 0", "", start);
  const auto failed = rounds.without(1);
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].first, "misses 1");
}

TEST(StopVote, TakesTheCallThatNobodyHasMade) {
  StopVote vote(3);
  EXPECT_TRUE(vote.begin());
  EXPECT_FALSE(vote.begin());
  EXPECT_FALSE(vote.count(0, 7));
  EXPECT_FALSE(vote.count(2, 9));
  EXPECT_FALSE(vote.count(2, 100)) << "its first answer counts";
  EXPECT_EQ(vote.count(1, 8), 10u);
  EXPECT_FALSE(vote.count(1, 8)) << "there is one answer";
}

TEST(Frames, ComeOutAsTheyWentIn) {
  FrameReader reader(longest_body);
  const std::string bytes = to_bytes(make_frame(Kind::part, "name", std::uint64_t{1} << 40, std::string("\0x", 2))) +
                            to_bytes(make_frame(Kind::stop));
  for (const char byte : bytes) {  // however they are cut
    EXPECT_FALSE(reader.next());
    reader.add({&byte, 1});
    if (const auto frame = reader.next()) {
      if (frame->kind == Kind::stop) return;
      BodyReader body(frame->body);
      EXPECT_EQ(body.text(), "name");
      EXPECT_EQ(body.number(), std::uint64_t{1} << 40);
      EXPECT_EQ(body.text(), std::string("\0x", 2));
      EXPECT_TRUE(body.empty());
    }
  }
  FAIL() << "the second frame did not come";
}

TEST(Frames, RefuseWhatIsNone) {
  const auto read = [](const std::string& bytes, std::size_t longest) {
    FrameReader reader(longest);
    reader.add(bytes);
    return reader.next();
  };
  const std::string eleven = to_bytes({Kind::stop, std::string(11, 'x')});
  EXPECT_TRUE(read(eleven, 11));
  EXPECT_FALSE(read(eleven.substr(0, eleven.size() - 1), 11));
  EXPECT_THROW(read(eleven, 10), CommunicatorError);
  EXPECT_THROW(read({"\xff\xff\xff\xff\x00", 5}, longest_body), CommunicatorError);
  EXPECT_THROW(read({"\x00\x00\x00\x00\x7f", 5}, longest_body), CommunicatorError);
  EXPECT_THROW(BodyReader("1234567").number(), CommunicatorError);
  EXPECT_THROW(BodyReader({"\x05\0\0\0\0\0\0\0four", 12}).text(), CommunicatorError);
  EXPECT_THROW(BodyReader({"\xff\xff\xff\xff\xff\xff\xff\xff", 8}).text(), CommunicatorError);
}

}  // namespace
}  // namespace aliquot
