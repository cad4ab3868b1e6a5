/// \file
/// What a rank says it is doing, in a form that lies in shared memory.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "aliquot/communicator.h"

namespace aliquot {

/// One call of a collective. Ranks that take part in the same one write equal envelopes. Long unit names keep their
/// end, where names of one model differ.
struct alignas(64) Envelope {
  std::array<char, 16> collective;  ///< "all_gather", ...
  std::array<char, 32> operation;
  std::array<char, 184> unit;
  std::uint64_t size;      ///< in the collective's own elements
  std::uint64_t sequence;  ///< counts calls among these ranks
  std::int32_t root;       ///< the rank that sends, or -1

  friend bool operator==(const Envelope&, const Envelope&) = default;
};

Envelope make_envelope(std::string_view collective, const Tag& tag, std::uint64_t size, int root = -1);

/// all_gather "gather" of unit "blocks.0" (size 128, call 7)
std::string to_text(const Envelope& envelope);

/// What to tell of two ranks of which one says this and the other that.
std::string disagreement(int rank, const Envelope& call, int other_rank, const Envelope& other_call);

}  // namespace aliquot
