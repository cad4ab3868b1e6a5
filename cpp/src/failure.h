/// \file
/// Why a world has ended before its time.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace aliquot {

/// The first thing that went wrong for good, in shared memory; ranks that would wait meet it instead. Zeros: nothing.
struct alignas(64) Failure {
  std::uint32_t state;
  std::int32_t lost_rank;  ///< the rank that is gone, or -1
  std::array<char, 1024> text;

  /// Records it unless another rank was first. Safe from any thread.
  void record(int lost, std::string_view what) noexcept;
  bool happened() const noexcept;
  /// Throws what was recorded, if anything was: PeerLost or CommunicatorError.
  void raise() const;
  /// Only PeerLost.
  void raise_if_lost() const;
};

}  // namespace aliquot
