/// \file
/// What lies where in the memory that the ranks of one SharedCommunicator coordinate through. All zero at the start.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "aliquot/communicator.h"
#include "doorbell.h"
#include "envelope.h"
#include "failure.h"

namespace aliquot {

/// One rank's end of a Group: what it says and what it gives, for this round and for the last one. Two buffers follow.
struct Lane {
  alignas(64) Signal round;
  std::array<Envelope, 2> envelopes;
};

struct RankState {
  alignas(64) Signal left;          ///< 1 once the rank has ended its communicator in good order
  Signal waiting;                   ///< 1 while the rank is inside wait_until
  std::uint32_t still_since;        ///< the rings of the doorbell after which it last asked in vain for signals
  std::array<char, 192> waits_for;  ///< and what it waited for then
};

/// [ Doorbell, Failure | part of rank 0 | part of rank 1 | ... ], where a part is
/// [ RankState | lane towards all | lane towards rank 0 | lane towards rank 1 | ... ].
/// Pages that nobody touches cost nothing, so lanes may be many.
class SharedWorld {
 public:
  static constexpr std::size_t all_buffer_bytes = 512 << 10;
  static constexpr std::size_t pair_buffer_bytes = 64 << 10;

  static std::size_t bytes(int world_size) {
    return head_bytes + static_cast<std::size_t>(world_size) * part_bytes(world_size);
  }
  static std::size_t part_bytes(int world_size) {
    return round_to_page(sizeof(RankState) + lane_bytes(all_buffer_bytes) +
                         static_cast<std::size_t>(world_size) * lane_bytes(pair_buffer_bytes));
  }

  SharedWorld(std::byte* base, int world_size) : base_(base), part_bytes_(part_bytes(world_size)) {}

  Doorbell& doorbell() const { return reinterpret_cast<Head*>(base_)->doorbell; }
  Failure& failure() const { return reinterpret_cast<Head*>(base_)->failure; }
  std::byte* parts() const { return base_ + head_bytes; }
  RankState& state(int rank) const { return *reinterpret_cast<RankState*>(part(rank)); }
  Lane& lane(int rank) const { return *reinterpret_cast<Lane*>(part(rank) + sizeof(RankState)); }
  Lane& lane(int rank, int towards) const {
    return *reinterpret_cast<Lane*>(part(rank) + sizeof(RankState) + lane_bytes(all_buffer_bytes) +
                                    static_cast<std::size_t>(towards) * lane_bytes(pair_buffer_bytes));
  }

 private:
  struct Head {
    Doorbell doorbell;
    Failure failure;
  };
  static constexpr std::size_t lane_bytes(std::size_t buffer_bytes) { return sizeof(Lane) + 2 * buffer_bytes; }
  static constexpr std::size_t round_to_page(std::size_t bytes) { return (bytes + 4095) / 4096 * 4096; }
  static constexpr std::size_t head_bytes = (sizeof(Head) + 4095) / 4096 * 4096;

  std::byte* part(int rank) const { return parts() + static_cast<std::size_t>(rank) * part_bytes_; }

  std::byte* base_;
  std::size_t part_bytes_;
};

}  // namespace aliquot
