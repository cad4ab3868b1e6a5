#include "call_mail.h"

#include <atomic>
#include <cstring>
#include <span>

#include "aliquot/error.h"
#include "frames.h"

namespace aliquot {
namespace {

using namespace std::chrono_literals;

constexpr auto between_letters = 200ms;
constexpr auto longest_answer = 2s;

/// The same on every rank, and that of no other mail of the channel.
std::string common_name(Communicator& control) {
  static std::atomic<std::uint64_t> made = 0;
  std::uint64_t number = made++;
  control.broadcast({"connect", "calls"}, std::as_writable_bytes(std::span(&number, 1)), 0);
  return "calls of " + std::to_string(control.names().of(0)) + ", " + std::to_string(number);
}

}  // namespace

// The barrier: nobody is told anything before he listens.
CallMail::CallMail(Communicator& control, ControlChannel& channel, CallsOf calls_of)
    : channel_(channel), calls_of_(std::move(calls_of)), rank_(control.rank()), world_size_(control.world_size()),
      names_(control.names()), name_(common_name(control)), asked_at_(static_cast<std::size_t>(world_size_)),
      listening_(channel.listen(name_, [inbox = inbox_](int from, const std::string& text) {
        const std::lock_guard lock(inbox->mutex);
        inbox->letters.emplace_back(from, text);
      })) {
  control.barrier({"connect", "calls"});
}

void CallMail::exchange() {
  std::vector<std::pair<int, std::string>> letters;
  {
    const std::lock_guard lock(inbox_->mutex);
    letters.swap(inbox_->letters);
  }
  for (const auto& [from, text] : letters) take((from - names_.first) / names_.stride, text);
  if (mine().log.size() != said_ && Clock::now() - said_at_ >= between_letters) say();
}

void CallMail::say() {
  said_at_ = Clock::now();
  said_ = mine().log.size();
  const Letter news{.left = reached(mine().left, 1) ? 1U : 0U, .records = records(said_, said_)};
  for (int rank = 0; rank < world_size_; ++rank) {
    if (comes_from(rank)) send(rank, news);
  }
}

bool CallMail::brought(int rank, std::uint64_t first, std::uint64_t last) {
  for (std::uint64_t number = first; number <= last; ++number) {
    const auto ours = mine().log.find(number);
    if (!ours) continue;
    const auto theirs = calls_of_(rank).log.find(number);
    if (theirs && theirs->digest == ours->digest) continue;
    if (theirs) return true;
    auto& asked_at = asked_at_[static_cast<std::size_t>(rank)];
    if (asked_at != Clock::time_point{}) return Clock::now() - asked_at > longest_answer;
    asked_at = Clock::now();
    send(rank, {.first = number, .last = last, .records = {}});
    return false;
  }
  return true;
}

void CallMail::send(int to, const Letter& letter) {
  std::string text;
  for (const std::uint64_t number : {letter.left, letter.first, letter.last}) append(text, number);
  append(text, letter.records);
  channel_.tell(names_.of(to), name_, text);
}

void CallMail::take(int from, const std::string& text) {
  BodyReader reader(text);
  Letter letter{.left = reader.number(), .first = reader.number(), .last = reader.number(), .records = reader.text()};
  CallsOfRank& theirs = calls_of_(from);
  for (std::string_view rest = letter.records; rest.size() >= sizeof(CallRecord);
       rest.remove_prefix(sizeof(CallRecord))) {
    CallRecord record;
    std::memcpy(&record, rest.data(), sizeof record);
    theirs.log.put(record);
  }
  if (letter.left != 0) std::atomic_ref(theirs.left).store(1, std::memory_order_release);
  if (letter.first != 0) send(from, {.records = records(letter.first, letter.last)});
}

std::string CallMail::records(std::uint64_t first, std::uint64_t last) const {
  std::string bytes;
  for (std::uint64_t number = first; number <= last && number <= mine().log.size(); ++number) {
    if (const auto record = mine().log.find(number)) {
      bytes.append(reinterpret_cast<const char*>(&*record), sizeof(CallRecord));
    }
  }
  return bytes;
}

}  // namespace aliquot
