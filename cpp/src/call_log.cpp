#include "call_log.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace aliquot {
namespace {

// The last bytes of an Envelope are padding, of which nobody says what they hold.
constexpr std::size_t bytes_that_count = offsetof(Envelope, root) + sizeof(Envelope::root);

std::uint64_t load(const std::uint64_t& word) noexcept {
  return std::atomic_ref(const_cast<std::uint64_t&>(word)).load(std::memory_order_acquire);
}

void store(std::uint64_t& word, std::uint64_t value) noexcept {
  std::atomic_ref(word).store(value, std::memory_order_release);
}

}  // namespace

// FNV-1a (Fowler, Noll, Vo), a word at a time.
std::uint64_t CallLog::mixed(std::uint64_t digest, std::span<const std::uint64_t> words) noexcept {
  for (const std::uint64_t word : words) digest = (digest ^ word) * 0x100000001b3u;
  return digest ^ (digest >> 29);
}

void CallLog::add(const Envelope& call) noexcept {
  const std::uint64_t last = size_;
  Envelope numbered = call;
  numbered.sequence = last + 1;
  Words words{};
  std::memcpy(words.data(), &numbered, bytes_that_count);
  const std::uint64_t before = last == 0 ? 0xcbf29ce484222325u : words_[(last - 1) % depth].back();
  words.back() = mixed(before, std::span(words).first(words_of_call));
  write(last + 1, words);
}

void CallLog::put(const CallRecord& record) noexcept {
  const std::uint64_t number = record.call.sequence;
  if (number == 0 || number + depth <= size_) return;
  Words words{};
  std::memcpy(words.data(), &record.call, bytes_that_count);
  words.back() = record.digest;
  write(number, words);
}

void CallLog::write(std::uint64_t number, const Words& words) noexcept {
  store(begun_, std::max(begun_, number));
  for (std::size_t i = 0; i < words.size(); ++i) store(words_[(number - 1) % depth][i], words[i]);
  store(size_, std::max(size_, number));
}

std::uint64_t CallLog::size() const noexcept { return load(size_); }

// Whoever has read a word of a later record sees with it that the record was begun.
std::optional<CallRecord> CallLog::find(std::uint64_t number) const noexcept {
  if (number == 0 || number > size()) return {};
  Words words;
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = load(words_[(number - 1) % depth][i]);
  if (load(begun_) >= number + depth) return {};
  CallRecord record{};
  std::memcpy(&record.call, words.data(), bytes_that_count);
  record.digest = words.back();
  if (record.call.sequence != number) return {};
  return record;
}

}  // namespace aliquot
