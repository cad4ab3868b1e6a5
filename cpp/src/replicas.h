/// \file
/// Groups of ranks that each hold the whole model in shards of their own (HSDP).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/reducer.h"
#include "aliquot/shard_store.h"

namespace aliquot {

/// Keeps the gradients of all groups the same, so that every group makes the same steps: docs/design.md, "Replicas". In
/// every micro-step the ranks that hold the same shards meet once: behind finish() of their groups, or giving up.
class Replicas {
 public:
  /// `counterparts`: see EngineOptions::replicas.
  Replicas(const ShardStore& store, Communicator& counterparts);

  /// Behind finish(): gradients become the mean over the groups, with the same bits in each; `stream` finds them there.
  /// \param reducer  a Reducer or a DeviceReducer
  /// \throws CommunicatorError if a group gave up, or has made another number of steps
  template <typename AnyReducer>
  void average(AnyReducer& reducer, Stream stream);
  /// This rank gives up the micro-step, and the others hear of it.
  void give_up();
  /// This rank begins a step.
  void count_step() { ++steps_; }
  /// All groups do the same now.
  void meet(const Tag& tag) { counterparts_.host().barrier(tag); }

 private:
  template <typename AnyReducer>
  std::vector<std::byte> message_of(const AnyReducer& reducer) const;
  std::vector<std::byte> exchange(std::span<const std::byte> mine, const std::string& operation);
  void require_nobody_gave_up(std::span<const std::byte> said) const;
  std::string operation() const;

  const ShardStore& store_;
  Communicator& counterparts_;
  std::size_t engine_;  ///< of those that share the communicator
  std::size_t message_bytes_ = 1;
  std::uint64_t steps_ = 0;
  bool met_ = false;  ///< in this micro-step, which is not over
};

}  // namespace aliquot
