/// \file
/// Sums full gradients over the ranks into their owners' shards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/kernels.h"
#include "aliquot/shard_store.h"
#include "aliquot/timeline.h"

namespace aliquot {

/// The gradients of a unit's parameters, in the unit's order: a contiguous array of the parameter's numel, in the
/// unit's dtype, or null where the parameter has none. Read during the call, or on its stream; not later.
using Gradients = std::vector<const void*>;

/// Units with gradients that a pass has left over.
using Left = std::vector<std::pair<std::size_t, Gradients>>;

class Outboxes;

struct ReduceStatistics {
  std::uint64_t reduces = 0;
  std::uint64_t bytes = 0;  ///< of full gradients packed
  double seconds = 0;       ///< spent packing, waiting and summing
};

/// One micro-step (one backward) takes at most one contribution per unit from each rank. The gradient in the store is
/// the sum over the micro-steps since clear() of the mean over the ranks; a rank without a contribution counts as
/// zero. On the host: streams are there for the signatures that DeviceReducer has too. One-sided transports: see
/// docs/design.md, "Reducing without a partner". Single-threaded.
class Reducer {
 public:
  Reducer(ShardStore& store, Communicator& communicator, MemoryResource& memory);
  ~Reducer();

  /// Outboxes for the units as they are now: of those that train one is new, or the first. Between micro-steps, behind
  /// a barrier: no rank reads the ones before. Gradients stay. Collective over one-sided transports.
  void make_room(MemoryResource& memory);

  /// Packs and publishes this rank's gradients of `unit`. False, and nothing done, if that would need memory that
  /// only free up once peers on another path through the model get on: keep the gradients and give them to finish().
  bool offer(std::size_t unit, const Gradients& gradients, Stream stream = {});
  /// True if `unit` was offered in this micro-step.
  bool offered(std::size_t unit) const { return units_.at(unit).offered; }
  /// Ends the micro-step: offers what is left, in the order of the units, tells peers of units without a
  /// contribution, and returns when this rank's shards hold the sums.
  void finish(const Left& left, Stream stream = {});
  /// Gives up the micro-step and every gradient since clear(). Peers that wait for it get a CommunicatorError.
  void abandon(Stream stream = {});

  /// True if finish() added to `unit` on some rank and average() has not seen that; the same on every rank.
  bool unaveraged(std::size_t unit) const { return units_.at(unit).unaveraged; }
  /// The gradient of `unit` in the store becomes the mean over `replicas`, which hold the same shard; one that is empty
  /// counts as zeros. Collective over them. `tag` names it.
  void average(std::size_t unit, Communicator& replicas, const Tag& tag);
  /// The parameter has had a gradient elsewhere.
  void note_present(std::size_t unit, std::size_t param, Stream = {}) { units_.at(unit).present.at(param) = true; }

  /// Forgets all gradients; the next ones are assigned, not added.
  void clear(Stream stream = {});
  /// Forgets one parameter's gradient.
  void clear(std::size_t unit, std::size_t param, Stream stream = {});
  /// True if the parameter had a gradient on any rank since clear(), as of the last finish().
  bool present(std::size_t unit, std::size_t param) const { return units_.at(unit).present.at(param); }
  /// True if no rank contributed to the unit since clear(); the same on every rank between micro-steps.
  bool empty(std::size_t unit) const { return units_.at(unit).empty; }
  /// Square sum and non-finite count of this rank's shard.
  GradStatistics statistics(std::size_t unit);
  /// Call when somebody may have written to gradients in the store.
  void invalidate_statistics();
  /// From here on the store has gradients of the unit's parameters that are `present`: all of them zero, and somebody
  /// will write them.
  void restore(std::size_t unit, const std::vector<bool>& present, Stream stream = {});
  /// Multiplies the gradients in the store.
  void scale_all(float factor, Stream stream = {});
  /// Multiplies one parameter's.
  void scale(std::size_t unit, std::size_t param, float factor, Stream stream = {});
  /// Of `range` of the unit's gradient, which this rank holds and which is not empty().
  GradStatistics measure(std::size_t unit, Range range, Stream stream = {}) const;

  /// From here on what it does is on `timeline`, if there is one.
  void profile(Timeline* timeline) { timeline_ = timeline; }
  std::size_t outbox_bytes() const;
  const ReduceStatistics& reduce_statistics() const { return statistics_; }

 private:
  void agree_on_presence();
  struct Unit {
    bool offered = false;  ///< in this micro-step
    bool summed = false;   ///< in this micro-step
    bool empty = true;     ///< no contribution of any rank since clear()
    bool unaveraged = false;
    std::vector<bool> present;                 ///< per parameter
    std::optional<GradStatistics> statistics;  ///< of the shard, while they are current
  };
  void pack(std::size_t unit, const Gradients& gradients, float* full) const;
  void accumulate(std::size_t unit, const std::vector<const float*>& shards);
  void note(std::size_t unit, const Gradients& gradients);

  float* take_box(std::size_t unit);
  bool offer_one_sided(std::size_t unit, const Gradients& gradients);
  void finish_one_sided(const Left& left);
  void sum_what_is_ready();
  void sum_for_peers() noexcept;
  void give_up(const std::vector<bool>& offered);

  void reduce_two_sided(std::size_t unit, const Gradients& gradients);
  void finish_two_sided(const Left& left);

  ShardStore& store_;
  Communicator& communicator_;
  std::vector<Unit> units_;
  std::unique_ptr<Outboxes> outboxes_;  ///< one-sided transports
  std::shared_ptr<void> chore_;         ///< sum_for_peers, while this rank waits
  Buffer outbox_;                       ///< two-sided ones: a full unit,
  Buffer sums_;                         ///< and this rank's part of its sum
  ReduceStatistics statistics_;
  Timeline* timeline_ = nullptr;
};

}  // namespace aliquot
