#include <string>
#include <utility>

#include "aliquot/engine.h"
#include "aliquot/error.h"
#include "device_optimizer.h"
#include "device_reducer.h"
#include "engine_rooms.h"

// What a checkpoint takes and gives back.
namespace aliquot {

std::vector<Engine::Part> Engine::parts_to_save(std::size_t unit, Role role) const {
  return parts_of(unit, role, layout(unit).shard(communicator_.rank()));
}

// What does not train is not shared by end_update.
std::vector<Engine::Part> Engine::parts_to_load(std::size_t unit, Role role) const {
  if (is_state(role)) {
    std::vector<Part> parts;
    for (const int owner : store_.stepped_shards()) {
      for (const Part& part : parts_of(unit, role, layout(unit).shard(owner))) parts.push_back(part);
    }
    return parts;
  }
  const bool trains = layout(unit).unit().trainable;
  return parts_of(unit, role, trains ? store_.stepped_range(unit) : store_.held_range(unit, role));
}

bool Engine::holds_gradients(std::size_t unit) const {
  return store_.holds(unit, Role::grad) && with(reducer_, [&](const auto& reducer) { return !reducer.empty(unit); });
}

void Engine::restore_gradients(std::size_t unit, const std::vector<bool>& present, Stream stream) {
  await_update(stream);
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
  await_update(stream);
  if (auto* optimizer = std::get_if<std::unique_ptr<DeviceOptimizer>>(&optimizer_))
    (*optimizer)->set_counts(counts, stream);
}

}  // namespace aliquot
