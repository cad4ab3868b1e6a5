#include <string>
#include <utility>

#include "aliquot/device_kernels.h"
#include "aliquot/engine.h"
#include "aliquot/kernels.h"
#include "device_optimizer.h"
#include "device_reducer.h"
#include "engine_rooms.h"
#include "hidden_step.h"
#include "replicas.h"
#include "stopwatch.h"

// Optimizers: the engine's own, and those of somebody else's; the loss scale.
namespace aliquot {

void Engine::set_groups(Grouping grouping, const Rule& rule) {
  const LossScale scale = loss_scale();
  await_update();
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
  await_update();
  std::visit([&](auto& optimizer) { optimizer->regroup(std::move(grouping)); }, optimizer_);
}

std::vector<Engine::Part> Engine::parts_of(std::size_t unit, Role role, Range range) const {
  await_update();
  std::vector<Part> parts;
  for (const Segment& segment : layout(unit).segments(range)) {
    const std::span<std::byte> bytes = store_.held_bytes(unit, role, segment.range);
    Part part{segment.param, segment.range.begin - layout(unit).param(segment.param).begin, segment.range.size(),
              bytes.data()};
    if (is_state(role) && store_.state_form() == StateForm::quantized) {
      part.scales = store_.scales(unit, role, segment).data();
    }
    parts.push_back(part);
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
  if (replicas_) replicas_->count_step();
  release_held(stream);
  graph_.assign(graph_.size(), false);
  gatherer_.finish_reads(stream);
  await_update(stream);
}

void Engine::await_update(Stream stream) const {
  if (hidden_) hidden_->await(stream);
}

void Engine::await_update() const {
  if (hidden_) hidden_->await();
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
  return on_cpu(memory_) ? step_on_host(rules, max_norm) : step_on_device(rules, max_norm, stream);
}

StepResult Engine::step_on_device(std::span<const Rule> rules, std::optional<double> max_norm, Stream stream) {
  auto& optimizer = *std::get<std::unique_ptr<DeviceOptimizer>>(optimizer_);
  if (!captured_steps_) optimizer.send(rules, stream);
  optimizer.decide(device_reducer(), max_norm, stream);
  if (hidden_) {
    update_beside(optimizer, stream);
  } else {
    for (std::size_t unit = 0; unit < unit_count(); ++unit) optimizer.update(unit, Hold::work, stream);
    share_update(stream);
  }
  if (!captured_steps_) return optimizer.receive(stream);
  ++*captured_steps_;
  return {};
}

// docs/design.md, "The hidden step".
void Engine::update_beside(DeviceOptimizer& optimizer, Stream stream) {
  gatherer_.begin_version(stream);
  const Stream beside = hidden_->begin(stream);
  for (std::size_t unit = 0; unit < unit_count(); ++unit) {
    if (!store_.holds(unit, Role::grad)) continue;
    optimizer.update(unit, Hold::none, beside);
    gatherer_.publish_unit(unit, beside);
  }
}

StepResult Engine::step_on_host(std::span<const Rule> rules, std::optional<double> max_norm) {
  const GradientReport report = gradient_report();
  StepResult result = judge(report, max_norm, {});
  if (!result.skipped) {
    std::get<std::unique_ptr<Optimizer>>(optimizer_)->step(rules, report.present, result.grad_scale);
  }
  share_update({});
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

}  // namespace aliquot
