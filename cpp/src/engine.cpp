#include "aliquot/engine.h"

#include <algorithm>
#include <string>
#include <utility>

#include "aliquot/kernels.h"
#include "gradient_report.h"
#include "stopwatch.h"

namespace aliquot {

Engine::Engine(std::vector<UnitSpec> units, Communicator& communicator, MemoryResource& memory, EngineOptions options)
    : communicator_(communicator), store_(std::move(units), options.stage, communicator, memory),
      gatherer_(store_, communicator, memory, options.gatherer), reducer_(store_, communicator, memory),
      graph_(store_.unit_count()), in_backward_(store_.unit_count()), held_(store_.unit_count()) {}

const float* Engine::pre_forward(std::size_t unit, Stream) {
  const auto home = graph_.at(unit) ? Slots::Home::fixed : Slots::Home::may_move;
  return gatherer_.acquire(unit, Pass::forward, home);
}

void Engine::post_forward(std::size_t unit, Stream) { gatherer_.release(unit); }

void Engine::expect_backward(std::size_t unit) { graph_.at(unit) = true; }

void Engine::finish_forward() { gatherer_.end_pass(Pass::forward); }

const float* Engine::pre_backward(std::size_t unit, Stream) {
  if (in_backward_.at(unit)) return nullptr;
  const float* full = gatherer_.acquire(unit, Pass::backward, Slots::Home::fixed);
  in_backward_[unit] = true;
  return full;
}

void Engine::hold(std::size_t unit) {
  if (!held_.at(unit)) gatherer_.hold(unit);
  held_[unit] = true;
}

void Engine::release_held() {
  for (std::size_t unit = 0; unit < unit_count(); ++unit) {
    if (held_[unit]) gatherer_.release(unit);
    held_[unit] = false;
  }
}

bool Engine::post_backward(std::size_t unit, const Gradients& gradients, Stream) {
  if (in_backward_.at(unit)) gatherer_.release(unit);
  in_backward_[unit] = false;
  return gradients.empty() || reducer_.offer(unit, gradients);
}

void Engine::leave_backward() {
  for (std::size_t unit = 0; unit < unit_count(); ++unit) {
    if (in_backward_[unit]) gatherer_.release(unit);
    in_backward_[unit] = false;
  }
  gatherer_.end_pass(Pass::backward);
}

void Engine::finish_backward(const Left& left, Stream) {
  leave_backward();
  reducer_.finish(left);
  reducer_.agree_on_presence();
  if (!store_.stage().shards_gradients()) spread(Role::grad);
}

void Engine::spread(Role role) {
  gatherer_.publish();
  for (std::size_t unit = 0; unit < unit_count(); ++unit) {
    if (!store_.holds(unit, Role::grad) || (role == Role::grad && reducer_.empty(unit))) continue;
    gatherer_.fetch(unit, role, store_.block(unit, role).data());
  }
  // Whole blocks are the caller's to write from here on: not while a peer still copies from this one.
  communicator_.barrier({"spread", name_of(role)});
}

void Engine::set_groups(Grouping grouping) { optimizer_.emplace(store_, std::move(grouping)); }

StepResult Engine::step(std::span<const AdamWGroup> groups, std::optional<double> max_norm, Stream) {
  if (!optimizer_) throw InvalidArgument("step before set_groups: say which group each parameter is in");
  const Stopwatch stopwatch(step_seconds_);
  const GradientReport report = gradient_report();
  release_held();
  graph_.assign(graph_.size(), false);
  if (report.non_finite > 0) {
    ++skipped_;
    return {report.norm, true, report.first_bad};
  }
  optimizer_->step(groups, report.present, max_norm ? clip_factor(report.norm, *max_norm) : 1.0F);
  ++steps_;
  if (store_.stage().shards_parameters()) {
    gatherer_.publish();
  } else if (store_.stage().shards_states()) {
    spread(Role::param);
  }
  return {report.norm, false, {}};
}

GradientReport Engine::gradient_report() { return exchange_gradient_report(store_, reducer_, communicator_); }

void Engine::scale_gradients(float factor) { reducer_.scale_all(factor); }

void Engine::clear_gradients() { reducer_.clear(); }

void Engine::clear_gradient(std::size_t unit, std::size_t param) { reducer_.clear(unit, param); }

bool Engine::has_gradient(std::size_t unit, std::size_t param) const {
  return store_.holds(unit, Role::grad) && !reducer_.empty(unit) && reducer_.present(unit, param);
}

float* Engine::whole_gradient(std::size_t unit) {
  if (store_.stage().shards_gradients()) {
    throw InvalidArgument("unit '" + layout(unit).unit().name + "': at stage " + std::to_string(store_.stage().number) +
                          " no rank holds the whole gradient");
  }
  reducer_.invalidate_statistics();
  return store_.block(unit, Role::grad).data();
}

void Engine::reset() {
  gatherer_.release_all();
  reducer_.abandon();
  graph_.assign(graph_.size(), false);
  held_.assign(held_.size(), false);
  in_backward_.assign(in_backward_.size(), false);
}

void Engine::begin_write() { communicator_.barrier({"write parameters", ""}); }

void Engine::write(std::size_t unit, std::size_t param, const float* values) {
  const Range range = layout(unit).param(param);
  const Range held = intersect(range, store_.held_range(unit, Role::param));
  if (held.empty()) return;
  copy({values + (held.begin - range.begin), held.size()}, store_.held_part(unit, Role::param, held).data());
}

void Engine::end_write() { gatherer_.publish(); }

void Engine::read(std::size_t unit, float* whole) {
  if (store_.stage().shards_parameters()) {
    gatherer_.fetch(unit, Role::param, whole);
  } else {
    copy(store_.block(unit, Role::param), whole);
  }
}

EngineStatistics Engine::statistics() const {
  EngineStatistics statistics;
  for (const auto& [role, bytes] : store_.bytes()) statistics.bytes.emplace(role, bytes);
  statistics.bytes["slot"] = gatherer_.slot_bytes();
  statistics.bytes["outbox"] = reducer_.outbox_bytes();
  statistics.gather = gatherer_.statistics();
  statistics.reduce = reducer_.reduce_statistics();
  statistics.step_seconds = step_seconds_;
  statistics.steps = steps_;
  statistics.skipped = skipped_;
  return statistics;
}

}  // namespace aliquot
