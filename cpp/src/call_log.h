/// \file
/// The last calls of one rank, written by it and read by others while it goes on.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "envelope.h"

namespace aliquot {

/// One call, and a digest of it and all calls before it.
struct CallRecord {
  Envelope call;
  std::uint64_t digest;
};

/// Lies in shared memory, or in each rank's own, where copies of records come to; zeros are its initial state. One
/// thread writes, any number read; nobody waits.
class CallLog {
 public:
  /// More calls than a host runs ahead of another in practice: a device's launch queue ends sooner.
  static constexpr std::size_t depth = 4096;

  /// Numbers `call` from 1, adds it, and lets it be seen.
  void add(const Envelope& call) noexcept;
  /// Copies a call of another log. Some may be left out, and come later.
  void put(const CallRecord& record) noexcept;
  /// How many were added; of copies, the latest.
  std::uint64_t size() const noexcept;
  /// Call `number`; none if it has been overwritten since, or is not there yet.
  std::optional<CallRecord> find(std::uint64_t number) const noexcept;

 private:
  // In words, each written at once, so that a reader who comes too late reads a mixture, but never what nobody wrote.
  static constexpr std::size_t words_of_call = sizeof(Envelope) / sizeof(std::uint64_t);
  using Words = std::array<std::uint64_t, words_of_call + 1>;

  void write(std::uint64_t number, const Words& words) noexcept;
  static std::uint64_t mixed(std::uint64_t digest, std::span<const std::uint64_t> words) noexcept;

  alignas(64) std::uint64_t begun_;
  std::uint64_t size_;
  std::array<Words, depth> words_;
};

}  // namespace aliquot
