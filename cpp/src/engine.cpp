#include "aliquot/engine.h"

#include <algorithm>
#include <string>
#include <utility>

#include "aliquot/device_kernels.h"
#include "aliquot/kernels.h"
#include "device_optimizer.h"
#include "device_reducer.h"
#include "device_write.h"
#include "gradient_report.h"
#include "host_write.h"
#include "stopwatch.h"

namespace aliquot {
namespace {

bool on_cpu(const MemoryResource& memory) { return memory.device().type == Device::Type::cpu; }

void require_mapped(const ShardStore& store, const Communicator& communicator) {
  if (!communicator.maps_peers() || store.unit_count() == 0) return;
  if (communicator.peer(communicator.rank(), store.bytes_of(0, Role::param).data()) != nullptr) return;
  throw InvalidArgument("the peers of an engine on the transport '" + std::string(communicator.name()) +
                        "' can't map its memory: give it that of planned_memory()");
}

/// Calls `use` with whichever room is there: the host's or the device's.
template <typename Room, typename Use>
decltype(auto) with(Room& room, const Use& use) {
  return std::visit([&](auto& pointer) -> decltype(auto) { return use(*pointer); }, room);
}

}  // namespace

Engine::Engine(std::vector<UnitSpec> units, Communicator& communicator, MemoryResource& memory, EngineOptions options)
    : communicator_(communicator), more_(on_cpu(memory) ? nullptr : device_memory(memory.device())),
      store_(std::move(units), options.stage, communicator, memory, options.store),
      gatherer_(store_, communicator, memory, options.gatherer), memory_(memory), graph_(store_.unit_count()),
      in_backward_(store_.unit_count()), held_(store_.unit_count()) {
  require_mapped(store_, communicator);
  if (on_cpu(memory)) {
    reducer_ = std::make_unique<Reducer>(store_, communicator, memory);
  } else {
    reducer_ = std::make_unique<DeviceReducer>(store_, communicator, memory);
  }
}

Engine::~Engine() = default;

const void* Engine::pre_forward(std::size_t unit, Stream stream) {
  const auto home = graph_.at(unit) ? Slots::Home::fixed : Slots::Home::may_move;
  return gatherer_.acquire(unit, Pass::forward, home, stream);
}

void Engine::post_forward(std::size_t unit, Stream stream) { gatherer_.release(unit, stream); }

void Engine::expect_backward(std::size_t unit) { graph_.at(unit) = true; }

void Engine::finish_forward() { gatherer_.end_pass(Pass::forward); }

const void* Engine::pre_backward(std::size_t unit, Stream stream) {
  if (in_backward_.at(unit)) return nullptr;
  const void* full = gatherer_.acquire(unit, Pass::backward, Slots::Home::fixed, stream);
  in_backward_[unit] = true;
  return full;
}

void Engine::hold(std::size_t unit) {
  if (!held_.at(unit)) gatherer_.hold(unit);
  held_[unit] = true;
}

void Engine::release_held(Stream stream) {
  for (std::size_t unit = 0; unit < unit_count(); ++unit) {
    if (held_[unit]) gatherer_.release(unit, stream);
    held_[unit] = false;
  }
}

bool Engine::post_backward(std::size_t unit, const Gradients& gradients, Stream stream) {
  if (in_backward_.at(unit)) gatherer_.release(unit, stream);
  in_backward_[unit] = false;
  return gradients.empty() || with(reducer_, [&](auto& reducer) { return reducer.offer(unit, gradients, stream); });
}

void Engine::leave_backward(Stream stream) {
  for (std::size_t unit = 0; unit < unit_count(); ++unit) {
    if (in_backward_[unit]) gatherer_.release(unit, stream);
    in_backward_[unit] = false;
  }
  gatherer_.end_pass(Pass::backward);
}

void Engine::finish_backward(const Left& left, Stream stream) {
  leave_backward(stream);
  with(reducer_, [&](auto& reducer) { reducer.finish(left, stream); });
  share_gradients(stream);
}

void Engine::spread(Role role, Stream stream) {
  gatherer_.publish(stream);
  for (std::size_t unit = 0; unit < unit_count(); ++unit) {
    const bool empty = with(reducer_, [&](auto& reducer) { return reducer.empty(unit); });
    if (!store_.holds(unit, Role::grad) || (role == Role::grad && empty)) continue;
    gatherer_.fetch(unit, role, store_.bytes_of(unit, role).data(), stream);
  }
  // Whole blocks are the caller's to write from here on: not while a peer still copies from this one.
  if (communicator_.one_sided()) communicator_.barrier({"spread", name_of(role)});
}

void Engine::set_groups(Grouping grouping, const Rule& rule) {
  const LossScale scale = loss_scale();
  optimizer_ = {};  // before its states
  if (on_cpu(memory_)) {
    optimizer_ = std::make_unique<Optimizer>(store_, communicator_, memory_, std::move(grouping), rule);
  } else {
    optimizer_ = std::make_unique<DeviceOptimizer>(store_, communicator_, *more_, grouping, rule);
  }
  set_loss_scale(scale);
  profile(timeline_);
}

void Engine::regroup(Grouping grouping) {
  require_groups("regroup");
  std::visit([&](auto& optimizer) { optimizer->regroup(std::move(grouping)); }, optimizer_);
}

std::vector<Engine::Part> Engine::parts_of(std::size_t unit, Role role, Range range) const {
  std::vector<Part> parts;
  for (const Segment& segment : layout(unit).segments(range)) {
    const std::span<std::byte> bytes = store_.held_bytes(unit, role, segment.range);
    parts.push_back({segment.param, segment.range.begin - layout(unit).param(segment.param).begin, segment.range.size(),
                     bytes.data()});
  }
  return parts;
}

std::vector<Engine::Part> Engine::values_to_step(std::size_t unit) const {
  const bool has_master = store_.holds(unit, Role::master);
  if (has_master && store_.master_form() == MasterForm::low16) {
    throw InvalidArgument("unit '" + layout(unit).unit().name +
                          "': the fp32 values are in two halves of 16 bits; ask for a plain fp32 master (in Python: "
                          "Precision(master=\"fp32\"))");
  }
  return parts_of(unit, has_master ? Role::master : Role::param, store_.stepped_range(unit));
}

std::vector<Engine::Part> Engine::gradients_to_step(std::size_t unit) const {
  std::vector<Part> parts = parts_of(unit, Role::grad, store_.stepped_range(unit));
  for (Part& part : parts) {
    if (!present_.at(unit).at(part.param)) part.data = nullptr;
  }
  return parts;
}

void Engine::end_graphs(Stream stream) {
  release_held(stream);
  graph_.assign(graph_.size(), false);
  gatherer_.finish_reads(stream);
}

StepResult Engine::begin_update(std::optional<double> max_norm, Stream stream) {
  end_graphs(stream);
  GradientReport report = gradient_report(stream);
  present_ = std::move(report.present);
  return judge(report, max_norm, stream);
}

StepResult Engine::judge(const GradientReport& report, std::optional<double> max_norm, Stream stream) {
  const bool skipped = report.non_finite > 0;
  counts_.add(skipped);
  if (skipped) {
    LossScale scale = loss_scale(stream);
    scale.overflow = 1;
    set_loss_scale(scale, stream);
  }
  const float clip = max_norm ? clip_factor(report.norm, *max_norm) : 1.0F;
  return {report.norm, skipped, report.first_bad, counts_, clip / report.loss_scale};
}

void Engine::end_update(Stream stream) {
  round_masters(stream);
  share_update(stream);
}

void Engine::round_masters(Stream stream) {
  if (store_.master_form() != MasterForm::fp32) return;
  for (std::size_t unit = 0; unit < unit_count(); ++unit) {
    if (store_.holds(unit, Role::master)) round_master(unit, stream);
  }
}

void Engine::round_master(std::size_t unit, Stream stream) {
  const Range range = store_.stepped_range(unit);
  const void* const master = store_.held_bytes(unit, Role::master, range).data();
  void* const param = store_.held_bytes(unit, Role::param, range).data();
  const DType dtype = layout(unit).unit().dtype;
  if (on_cpu(memory_)) {
    cast(master, DType::fp32, param, dtype, range.size());
  } else {
    cuda::cast(master, DType::fp32, param, dtype, range.size(), stream);
  }
}

void Engine::share_update(Stream stream) {
  if (store_.stage().shards_parameters()) {
    gatherer_.publish(stream);
  } else if (store_.stage().shards_states()) {
    spread(Role::param, stream);
  }
}

void Engine::require_groups(const char* verb) const {
  if (std::visit([](auto& optimizer) { return optimizer != nullptr; }, optimizer_)) return;
  throw InvalidArgument(std::string(verb) + " before set_groups: say which group each parameter is in");
}

StepResult Engine::step(std::span<const Rule> rules, std::optional<double> max_norm, Stream stream) {
  require_groups("step");
  const Stopwatch stopwatch(step_seconds_);
  const TimedScope timed(timeline_, Activity::step, Hold::work, "step", 0, stream);
  end_graphs(stream);
  const StepResult result = on_cpu(memory_) ? step_on_host(rules, max_norm) : step_on_device(rules, max_norm, stream);
  share_update(stream);
  return result;
}

StepResult Engine::step_on_device(std::span<const Rule> rules, std::optional<double> max_norm, Stream stream) {
  auto& optimizer = *std::get<std::unique_ptr<DeviceOptimizer>>(optimizer_);
  if (!captured_steps_) optimizer.send(rules, stream);
  optimizer.step(*std::get<std::unique_ptr<DeviceReducer>>(reducer_), max_norm, stream);
  if (!captured_steps_) return optimizer.receive(stream);
  ++*captured_steps_;
  return {};
}

StepResult Engine::step_on_host(std::span<const Rule> rules, std::optional<double> max_norm) {
  const GradientReport report = gradient_report();
  StepResult result = judge(report, max_norm, {});
  if (!result.skipped) {
    std::get<std::unique_ptr<Optimizer>>(optimizer_)->step(rules, report.present, result.grad_scale);
  }
  return result;
}

const void* Engine::device_state() const {
  const auto* optimizer = std::get_if<std::unique_ptr<DeviceOptimizer>>(&optimizer_);
  return optimizer == nullptr ? nullptr : (*optimizer)->state();
}

void Engine::set_loss_scale(const LossScale& scale, Stream stream) {
  loss_scale_ = scale;
  if (auto* there = device_loss_scale()) copy_async(there, &scale, sizeof scale, stream);
}

void Engine::update_loss_scale(const ScaleRule& rule, Stream stream) {
  if (auto* there = device_loss_scale()) {
    const DeviceGuard guard(memory_.device());
    cuda::update_loss_scale(there, rule, stream);
  } else {
    loss_scale_ = loss_scale_.updated(rule);
  }
}

LossScale Engine::loss_scale(Stream stream) const {
  LossScale scale = loss_scale_;
  if (const LossScale* there = device_loss_scale()) {
    copy_async(&scale, there, sizeof scale, stream);
    synchronize(stream);
  }
  return scale;
}

LossScale* Engine::device_loss_scale() const {
  const auto* optimizer = std::get_if<std::unique_ptr<DeviceOptimizer>>(&optimizer_);
  return optimizer == nullptr || *optimizer == nullptr ? nullptr : (*optimizer)->loss_scale();
}

GradientReport Engine::gradient_report(Stream stream) {
  GradientReport report =
      with(reducer_, [&](auto& reducer) { return exchange_gradient_report(store_, reducer, communicator_, stream); });
  report.loss_scale = loss_scale(stream).scale;
  report.norm /= report.loss_scale;
  return report;
}

void Engine::scale_gradients(float factor, Stream stream) {
  with(reducer_, [&](auto& reducer) { reducer.scale_all(factor, stream); });
}

void Engine::clear_gradients(Stream stream) {
  with(reducer_, [&](auto& reducer) { reducer.clear(stream); });
}

void Engine::clear_gradient(std::size_t unit, std::size_t param, Stream stream) {
  with(reducer_, [&](auto& reducer) { reducer.clear(unit, param, stream); });
}

bool Engine::has_gradient(std::size_t unit, std::size_t param) const {
  return holds_gradients(unit) && with(reducer_, [&](const auto& reducer) { return reducer.present(unit, param); });
}

float* Engine::whole_gradient(std::size_t unit) {
  if (store_.stage().shards_gradients()) {
    throw InvalidArgument("unit '" + layout(unit).unit().name + "': at stage " + std::to_string(store_.stage().number) +
                          " no rank holds the whole gradient");
  }
  with(reducer_, [](auto& reducer) { reducer.invalidate_statistics(); });
  return store_.block(unit, Role::grad).data();
}

void Engine::reset(Stream stream) {
  gatherer_.release_all(stream);
  with(reducer_, [&](auto& reducer) { reducer.abandon(stream); });
  graph_.assign(graph_.size(), false);
  held_.assign(held_.size(), false);
  in_backward_.assign(in_backward_.size(), false);
}

void Engine::begin_write() {
  gatherer_.finish_reads();
  communicator_.barrier({"write parameters", ""});
}

void Engine::write(std::size_t unit, std::size_t param, const float* values, Stream stream) {
  const Range range = layout(unit).param(param);
  if (!on_cpu(memory_)) return write_on_device(store_, unit, range, values, memory_.device(), stream);
  write_on_host(store_, unit, range, values);
}

void Engine::end_write(Stream stream) { gatherer_.publish(stream); }

void Engine::read(std::size_t unit, void* whole, Stream stream) {
  auto* bytes = static_cast<std::byte*>(whole);
  if (store_.stage().shards_parameters()) {
    gatherer_.fetch(unit, Role::param, bytes, stream);
  } else {
    const std::span<const std::byte> block = store_.bytes_of(unit, Role::param);
    if (on_cpu(memory_)) {
      std::ranges::copy(block, bytes);
    } else {
      copy_async(bytes, block.data(), block.size(), stream);
    }
  }
}

std::vector<Engine::Part> Engine::parts_to_save(std::size_t unit, Role role) const {
  return parts_of(unit, role, layout(unit).shard(communicator_.rank()));
}

// What does not train is not shared by end_update.
std::vector<Engine::Part> Engine::parts_to_load(std::size_t unit, Role role) const {
  const bool trains = layout(unit).unit().trainable;
  return parts_of(unit, role, trains ? store_.stepped_range(unit) : store_.held_range(unit, role));
}

bool Engine::holds_gradients(std::size_t unit) const {
  return store_.holds(unit, Role::grad) && with(reducer_, [&](const auto& reducer) { return !reducer.empty(unit); });
}

void Engine::restore_gradients(std::size_t unit, const std::vector<bool>& present, Stream stream) {
  if (present.size() != layout(unit).unit().params.size()) {
    throw InvalidArgument("restore_gradients: unit '" + layout(unit).unit().name + "' has " +
                          std::to_string(layout(unit).unit().params.size()) + " parameters, not " +
                          std::to_string(present.size()));
  }
  with(reducer_, [&](auto& reducer) { reducer.restore(unit, present, stream); });
}

void Engine::share_gradients(Stream stream) {
  if (!store_.stage().shards_gradients()) spread(Role::grad, stream);
}

ParamSteps Engine::param_steps(Stream stream) const {
  require_groups("param_steps");
  return std::visit([&](const auto& optimizer) { return optimizer->steps(stream); }, optimizer_);
}

void Engine::set_param_steps(ParamSteps steps, Stream stream) {
  require_groups("set_param_steps");
  bool complete = steps.size() == unit_count();
  for (std::size_t unit = 0; complete && unit < unit_count(); ++unit) {
    complete = steps[unit].size() == layout(unit).unit().params.size();
  }
  if (!complete) throw InvalidArgument("set_param_steps: there is one count for each parameter of each unit");
  std::visit([&](auto& optimizer) { optimizer->set_steps(std::move(steps), stream); }, optimizer_);
}

StepCounts Engine::step_counts() const {
  const auto* optimizer = std::get_if<std::unique_ptr<DeviceOptimizer>>(&optimizer_);
  return optimizer == nullptr ? counts_ : (*optimizer)->counts();
}

void Engine::set_step_counts(const StepCounts& counts, Stream stream) {
  counts_ = counts;
  if (auto* optimizer = std::get_if<std::unique_ptr<DeviceOptimizer>>(&optimizer_))
    (*optimizer)->set_counts(counts, stream);
}

void Engine::profile(Timeline* timeline) {
  if (timeline != nullptr && timeline_ != nullptr && timeline != timeline_) {
    throw InvalidArgument("the model is being profiled already: end that profile first");
  }
  const auto tell = [timeline](auto& room) {
    if (room) room->profile(timeline);
  };
  timeline_ = timeline;
  gatherer_.profile(timeline);
  std::visit(tell, reducer_);
  std::visit(tell, optimizer_);
}

EngineStatistics Engine::statistics() const {
  EngineStatistics statistics;
  for (const auto& [role, bytes] : store_.bytes()) statistics.bytes.emplace(role, bytes);
  statistics.bytes["slot"] = gatherer_.slot_bytes();
  with(reducer_, [&](const auto& reducer) {
    statistics.bytes["outbox"] = reducer.outbox_bytes();
    statistics.reduce = reducer.reduce_statistics();
  });
  statistics.gather = gatherer_.statistics();
  statistics.step_seconds = step_seconds_;
  statistics.steps = step_counts();
  return statistics;
}

}  // namespace aliquot
