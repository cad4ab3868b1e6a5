/// \file
/// Update rules (rules.h) over the parameters that a rank steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/memory_resource.h"
#include "aliquot/rules.h"
#include "aliquot/shard_store.h"
#include "aliquot/timeline.h"

namespace aliquot {

/// Which group each parameter belongs to, by unit and parameter; no_group: it is never stepped.
using Grouping = std::vector<std::vector<int>>;
inline constexpr int no_group = -1;

/// Which parameters had a gradient on any rank, by unit and parameter.
using Presence = std::vector<std::vector<bool>>;

/// How often each parameter was stepped, by unit and parameter.
using ParamSteps = std::vector<std::vector<std::int64_t>>;

/// Steps since the optimizer was made.
struct StepCounts {
  std::uint64_t steps = 0;  ///< that were not skipped
  std::uint64_t skipped = 0;
  std::uint64_t skipped_in_a_row = 0;

  void add(bool was_skipped) {
    ++(was_skipped ? skipped : steps);
    skipped_in_a_row = was_skipped ? skipped_in_a_row + 1 : 0;
  }
};

struct StepResult {
  double grad_norm = 0;   ///< before clipping
  bool skipped = false;   ///< gradients were not finite: nothing was changed, on any rank
  std::string first_bad;  ///< parameter
  StepCounts counts;      ///< with this step
  float grad_scale = 1;   ///< what the gradients multiply with: clipped, and without the loss scale. On a device it is
                          ///< StepState's
};

StateForm form_of_states(const Rule& rule);
std::size_t group_count(const Grouping& grouping);
/// \throws InvalidArgument if there are fewer rules, by group, than wanted, or one that is not as `made` is
void require_rules(std::span<const Rule> rules, std::size_t wanted, const Rule& made);

/// Steps the shards by a rule. A parameter counts its own steps, and one without a gradient is left alone: no decay, no
/// states, no count, as in torch.
class Optimizer {
 public:
  /// States of zero, in `memory`, which outlives the store.
  /// \param rule          its hyperparameters come with each step
  /// \param communicator  adds up norms over ranks, where the rule is Normed
  /// \throws OutOfMemory
  Optimizer(ShardStore& store, Communicator& communicator, MemoryResource& memory, Grouping grouping, const Rule& rule);

  /// Parameters are in other groups from here on. States and counts stay.
  void regroup(Grouping grouping) { grouping_ = std::move(grouping); }

  /// Every rank calls it.
  /// \param rules       by group, all of one kind
  /// \param grad_scale  multiplies every gradient: the clip factor
  void step(std::span<const Rule> rules, const Presence& present, float grad_scale);

  /// From here on each unit's update is on `timeline`, if there is one.
  void profile(Timeline* timeline) { timeline_ = timeline; }

  std::int64_t steps(std::size_t unit, std::size_t param) const { return steps_.at(unit).at(param); }
  ParamSteps steps(Stream = {}) const { return steps_; }
  void set_steps(ParamSteps steps, Stream = {}) { steps_ = std::move(steps); }

 private:
  struct Piece;
  using Visit = std::function<void(const Piece&)>;
  void count_steps(const Presence& present);
  void for_pieces(std::span<const Rule> rules, const Presence& present, const Visit& visit) const;
  void visit_shard(int owner, std::size_t unit, std::span<const Rule> rules, const Presence& present,
                   const Visit& visit) const;
  bool steps_param(std::size_t unit, std::size_t param, const Presence& present) const;

  ShardStore& store_;
  Communicator& communicator_;
  Rule rule_;
  Grouping grouping_;
  ParamSteps steps_;
  Timeline* timeline_ = nullptr;
};

/// What the gradients multiply with so that their norm is at most `max_norm`: max_norm / (norm + 1e-6), at most 1
/// (torch.nn.utils.clip_grad_norm_).
float clip_factor(double norm, double max_norm);

}  // namespace aliquot
