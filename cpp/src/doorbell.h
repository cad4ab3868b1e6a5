/// \file
/// Where ranks sleep.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>

namespace aliquot {

/// Two words in shared memory, rung after every change that some rank may wait for. Zeros are its initial state.
/// A sleeper that is killed stays counted; that costs the others a needless system call per ring, nothing else.
struct alignas(64) Doorbell {
  std::uint32_t rings;
  std::uint32_t sleepers;

  void ring() noexcept;
  /// How often it was rung.
  std::uint32_t heard() const noexcept;
  /// Sleeps until a ring that follows `ready()`'s last false answer, or `longest`. Returns ready().
  bool sleep(const std::function<bool()>& ready, std::chrono::milliseconds longest);
};

}  // namespace aliquot
