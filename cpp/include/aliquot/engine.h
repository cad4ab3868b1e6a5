/// \file
/// A sharded model's rooms put together, behind the verbs that a training loop or autograd's hooks call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "aliquot/communicator.h"
#include "aliquot/gatherer.h"
#include "aliquot/loss_scale.h"
#include "aliquot/memory_resource.h"
#include "aliquot/optimizer.h"
#include "aliquot/reducer.h"
#include "aliquot/shard_store.h"
#include "aliquot/timeline.h"

namespace aliquot {

struct EngineOptions {
  Stage stage{3};
  GathererOptions gatherer;
  StoreOptions store{};
  /// planned_memory() comes from the transport, where that has memory of its own. It does so in any case where
  /// Communicator::maps_peers().
  bool register_memory = false;
  /// On a device, at stage 3, updates go to a stream of their own and pass beside the next forward: each unit's comes
  /// before its next gather, whatever else the engine is asked comes behind all of them, and nothing else changes. The
  /// gradients that they read stay as long, also those of StoreOptions::transient. Ignored elsewhere.
  bool hide_step = false;
  /// Of HSDP: joins the ranks that hold the same shards as this one, one of each group that shards the model, in the
  /// order of the groups. Null: there is one group. It outlives the engine. It moves memory of the same kind as the
  /// communicator of the group.
  Communicator* replicas = nullptr;
};

/// The gradients of all ranks since the last clear_gradients(), the same on every rank.
struct GradientReport {
  double norm = 0;               ///< Euclidean, over all parameters, without the loss scale
  std::uint64_t non_finite = 0;  ///< elements that are NaN or infinite
  std::string first_bad;         ///< the first parameter that holds one; empty if none does
  Presence present;
  float loss_scale = 1;  ///< of the gradients as they are in the store
};

/// Seconds and counts since the engine was made; bytes as they are now.
struct EngineStatistics {
  std::map<std::string, std::size_t> bytes;  ///< of this rank: by role, "slot" and "outbox"
  GatherStatistics gather;
  ReduceStatistics reduce;
  double step_seconds = 0;
  StepCounts steps;
};

class DeviceReducer;
class DeviceOptimizer;
class HiddenStep;
class Replicas;

/// Memory of `device` for one engine with these arguments: all that it will hold, but for an optimizer's states and
/// tables, in one piece. Collective where communicator.maps_peers(), whatever the options, and elsewhere if
/// options.register_memory; then `communicator` must outlive it. What peers map is free when every rank has destroyed
/// its own.
/// \throws OutOfMemory, with the figures, if it can't be had, or a peer can't have its own; DeviceError
std::unique_ptr<MemoryResource> planned_memory(const std::vector<UnitSpec>& units, Communicator& communicator,
                                               const EngineOptions& options, Device device);

/// One rank of a sharded model. Calls come from one thread at a time; verbs on the same unit pair up. Where `memory` is
/// a device's, `stream` orders the work: a verb gives work to it and to streams of the engine's own, makes each wait
/// for what it needs, and returns. Addresses are of that memory. On CPUs all is done on return. Errors leave the engine
/// to be put right by reset().
class Engine {
 public:
  /// Collective. `communicator` and `memory` outlive the engine; both are of the same kind of memory.
  Engine(std::vector<UnitSpec> units, Communicator& communicator, MemoryResource& memory, EngineOptions options);

  ~Engine();

  /// Gathers the unit; returns its full parameters, in the unit's dtype (Layout gives the places), good until
  /// post_forward. The address is the same at every call unless units overlap in a new way; then it may move while no
  /// backward is outstanding.
  const void* pre_forward(std::size_t unit, Stream stream = {});
  void post_forward(std::size_t unit, Stream stream = {});
  /// The unit's forward will be walked backward: its address is fixed until its gradients are in, or step().
  void expect_backward(std::size_t unit);
  /// Gathers the unit for its backward. Repeated calls before post_backward do nothing more.
  const void* pre_backward(std::size_t unit, Stream stream = {});
  /// The other unit that is gathered where `unit` must land for its backward, if any: pre_backward would throw. Give
  /// that one back first where its backward is over.
  std::optional<std::size_t> in_the_way(std::size_t unit) const { return gatherer_.in_the_way(unit); }
  /// Somebody wrote to the gathered unit: it is gathered anew next time.
  void forget(std::size_t unit) { gatherer_.forget(unit); }
  /// Keeps a gathered unit until step() or reset(): its backward builds a graph that reads the parameters again.
  void hold(std::size_t unit);
  /// Gives the unit back, and its gradients to the reducer. An empty `gradients`: they come later, at the latest with
  /// finish_backward. Returns false if they must come later: for want of room, or, on a device, since it is another
  /// unit's turn.
  bool post_backward(std::size_t unit, const Gradients& gradients, Stream stream = {});
  /// Gives back what is still gathered for backward. Alone it ends a backward whose gradients stay outside.
  void leave_backward(Stream stream = {});
  /// The end of a backward: leave_backward, then `left`, the gradients that no post_backward took. On return this
  /// rank's gradients are reduced, over all groups of ranks, or on a device will be when `stream` has come so far.
  /// Every rank calls it once per backward, also with nothing to add.
  void finish_backward(const Left& left, Stream stream = {});
  /// Marks the end of a forward walk.
  void finish_forward();

  /// Clips by `max_norm` if given, and updates. Every rank calls it; they skip alike if a gradient is not finite.
  /// set_groups() comes first. On a device the host does not wait: what is returned is the latest result that it knows
  /// of, of this step or one before, and device_state() is that of this one.
  /// \param rules  by group, all of the kind of set_groups()
  StepResult step(std::span<const Rule> rules, std::optional<double> max_norm, Stream stream = {});
  /// An optimizer of new states, which group each parameter is in, and the kind of rule that steps them: its
  /// hyperparameters come with each step. \throws OutOfMemory
  void set_groups(Grouping grouping, const Rule& rule = AdamW());
  /// The same optimizer goes on with other groups.
  void regroup(Grouping grouping);

  // Instead of step(), for an optimizer of somebody else's, which updates each element by itself:

  /// A part of a parameter: `numel` elements, `begin` elements into it.
  struct Part {
    std::size_t param = 0;  ///< index into the unit's parameters
    std::size_t begin = 0;
    std::size_t numel = 0;
    void* data = nullptr;
    float* scales = nullptr;  ///< of its blocks, where `data` are the codes of a quantized state
  };
  /// The fp32 values of what this rank steps of the unit: of Role::param, or of Role::master where that is held. They
  /// stay where they are. \throws InvalidArgument if they are in two halves (MasterForm::low16)
  std::vector<Part> values_to_step(std::size_t unit) const;
  /// Every rank calls it, then updates with the gradients times StepResult::grad_scale, which clips them to `max_norm`
  /// if given, unless the result says skipped; then it calls end_update. The host waits.
  StepResult begin_update(std::optional<double> max_norm, Stream stream = {});
  /// The gradients of the same parts, in ShardStore::gradient_dtype; null where no rank had one. After begin_update.
  std::vector<Part> gradients_to_step(std::size_t unit) const;
  /// Rounds what was updated to the parameters' dtype, and lets the ranks have it.
  void end_update(Stream stream = {});

  /// What the loss was multiplied with, and so the gradients since the last clear: norms, clipping and updates are of
  /// what they are without it. 1 at first; set_groups() leaves it. A step that is skipped leaves `overflow`.
  void set_loss_scale(const LossScale& scale, Stream stream = {});
  /// Moves it on, by the steps since the last time. On a device the host does not wait.
  void update_loss_scale(const ScaleRule& rule, Stream stream = {});
  /// On a device the host waits.
  LossScale loss_scale(Stream stream = {}) const;
  /// Where it is on the device, as `stream` finds it; null on CPUs.
  LossScale* device_loss_scale() const;
  /// The scalars of the last step, where `stream` has come to its end (cuda::StepState); null on CPUs.
  const void* device_state() const;
  /// Every rank calls it. The host waits.
  GradientReport gradient_report(Stream stream = {});
  /// Square sums of the gradients of all ranks since the last clear_gradients(), by unit and parameter, without the
  /// loss scale; NaN where an element is not finite. The same on every rank, and every rank calls it. The host waits.
  std::vector<std::vector<double>> square_sums(Stream stream = {});
  void scale_gradients(float factor, Stream stream = {});
  /// Of one parameter. Every rank calls it.
  void scale_gradient(std::size_t unit, std::size_t param, float factor, Stream stream = {});
  void clear_gradients(Stream stream = {});
  void clear_gradient(std::size_t unit, std::size_t param, Stream stream = {});
  /// From here on the unit trains: gradients and states come with it, and its masters are its values as they are.
  /// Between steps, collective; gradients in the store stay. Does nothing where it trains already.
  /// \throws InvalidArgument on a device, whose memory is planned beforehand; OutOfMemory
  void unfreeze(std::size_t unit);
  /// True if the parameter had a gradient since the last clear: on any rank, and the same on every rank, on CPUs; on
  /// this rank on a device.
  bool has_gradient(std::size_t unit, std::size_t param) const;
  /// The reduced gradient of the whole unit, numel() floats, to read and to write; stages 0 and 1.
  float* whole_gradient(std::size_t unit);
  /// True if units are copied to slots, which later units overwrite.
  bool uses_slots() const { return gatherer_.uses_slots(); }

  /// Gives back all units and gives up all gradients since the last clear, after an exception. Where there are replicas
  /// it waits until each has come to the end of its backward, or gives up too.
  void reset(Stream stream = {});

  /// Writes a parameter's values, ParamSpec::numel floats, into what this rank holds of it. Between begin_write and
  /// end_write, which every rank calls: no rank reads parameters meanwhile.
  void begin_write();
  void write(std::size_t unit, std::size_t param, const float* values, Stream stream = {});
  void end_write(Stream stream = {});
  /// The full unit into `whole`, Layout::numel() elements of its dtype.
  void read(std::size_t unit, void* whole, Stream stream = {});

  // Checkpoints: parts of parameters by role, in the numbers that the store keeps them in.

  /// What this rank saves: its shard, also of what it holds whole, so that all ranks together save everything once.
  std::vector<Part> parts_to_save(std::size_t unit, Role role) const;
  /// What this rank has to be given again: all that end_update does not bring from other ranks. Written between
  /// begin_write and end_update, on the latter's stream; of parameters with an fp32 master only that. States are cut
  /// where shards end, as the blocks of quantized ones are.
  std::vector<Part> parts_to_load(std::size_t unit, Role role) const;
  /// True if gradients of the unit were reduced since the last clear; on every rank alike.
  bool holds_gradients(std::size_t unit) const;
  /// Gradients of a checkpoint come: after clear_gradients, of the unit's parameters that are `present`. Then
  /// parts_to_load of Role::grad are written, and for all units together share_gradients spreads them. Every rank calls
  /// both, behind begin_write. \throws InvalidArgument unless `present` has a word on each parameter
  void restore_gradients(std::size_t unit, const std::vector<bool>& present, Stream stream = {});
  void share_gradients(Stream stream = {});
  /// The optimizer's count for each parameter. On a device the host waits. set_groups() comes first.
  ParamSteps param_steps(Stream stream = {}) const;
  /// \throws InvalidArgument unless there is one for each parameter
  void set_param_steps(ParamSteps steps, Stream stream = {});
  /// On a device the host waits for the last step.
  StepCounts step_counts() const;
  void set_step_counts(const StepCounts& counts, Stream stream = {});

  // Steps in a graph of the device's that is replayed (docs/design.md, "Steps in a graph"). Where
  // Communicator::maps_peers().

  /// The host waits for all that is under way, and the engine's streams and slots begin anew: before a capture, and
  /// when it is over, however it ended.
  void renew();
  /// `stream`, which is being captured, brings the engine's own streams into the capture. What follows is whole steps.
  void begin_capture(Stream stream);
  /// They have joined `stream` again. \throws InvalidArgument if no step was captured
  void end_capture(Stream stream);
  /// Before `stream` is given a replay: its steps take these hyperparameters. \throws PeerLost, CommunicatorError: what
  /// has ended the world, of which a replay does not tell
  void begin_replay(std::span<const Rule> rules, Stream stream);
  /// After: what the engine is asked next comes behind the replay. Returns as step() does.
  StepResult end_replay(Stream stream);

  /// From here on what the engine does is on `timeline`, which stays until profile(nullptr). \throws InvalidArgument if
  /// it is on another
  void profile(Timeline* timeline);

  const Layout& layout(std::size_t unit) const { return store_.layout(unit); }
  std::size_t unit_count() const { return store_.unit_count(); }
  const ShardStore& store() const { return store_; }
  Communicator& communicator() const { return communicator_; }
  /// On a device the host waits for the last step.
  EngineStatistics statistics() const;

 private:
  void spread(Role role, Stream stream);
  void release_held(Stream stream);
  void require_groups(const char* verb) const;
  void require_replayable() const;
  DeviceReducer& device_reducer() const;
  void end_graphs(Stream stream);
  void round_masters(Stream stream);
  void round_master(std::size_t unit, Stream stream);
  void share_update(Stream stream);
  StepResult judge(const GradientReport& report, std::optional<double> max_norm, Stream stream);
  std::vector<Part> parts_of(std::size_t unit, Role role, Range range) const;
  StepResult step_on_host(std::span<const Rule> rules, std::optional<double> max_norm);
  StepResult step_on_device(std::span<const Rule> rules, std::optional<double> max_norm, Stream stream);
  void update_beside(DeviceOptimizer& optimizer, Stream stream);
  void await_update(Stream stream) const;
  void await_update() const;

  Communicator& communicator_;
  std::unique_ptr<MemoryResource> more_;  ///< on a device: what an optimizer takes is in no plan
  ShardStore store_;
  Gatherer gatherer_;
  MemoryResource& memory_;
  std::variant<std::unique_ptr<Reducer>, std::unique_ptr<DeviceReducer>> reducer_;
  std::unique_ptr<Replicas> replicas_;  ///< null where there is one group
  std::variant<std::unique_ptr<Optimizer>, std::unique_ptr<DeviceOptimizer>> optimizer_;  ///< null before set_groups
  std::vector<bool> graph_;        ///< a backward of this unit is expected
  std::vector<bool> in_backward_;  ///< acquired by pre_backward
  std::vector<bool> held_;
  std::optional<std::size_t> captured_steps_;  ///< in the capture that is under way
  Timeline* timeline_ = nullptr;
  double step_seconds_ = 0;
  StepCounts counts_;                   ///< of steps that the host judged: on CPUs, and of begin_update
  LossScale loss_scale_;                ///< where no DeviceOptimizer has it
  Presence present_;                    ///< at the last begin_update
  std::unique_ptr<HiddenStep> hidden_;  ///< null where updates are on the caller's stream
};

}  // namespace aliquot
