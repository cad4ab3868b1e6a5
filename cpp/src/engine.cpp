#include "aliquot/engine.h"

#include <algorithm>
#include <string>
#include <utility>

#include "aliquot/kernels.h"
#include "device_optimizer.h"
#include "device_reducer.h"
#include "device_write.h"
#include "engine_rooms.h"
#include "gradient_report.h"
#include "hidden_step.h"
#include "host_write.h"
#include "replicas.h"

namespace aliquot {
namespace {

void require_mapped(const ShardStore& store, const Communicator& communicator) {
  if (!communicator.maps_peers() || store.unit_count() == 0) return;
  if (communicator.peer(communicator.rank(), store.bytes_of(0, Role::param).data()) != nullptr) return;
  throw InvalidArgument("the peers of an engine on the transport '" + std::string(communicator.name()) +
                        "' can't map its memory: give it that of planned_memory()");
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
    reducer_ = std::make_unique<DeviceReducer>(store_, communicator, memory, options.replicas);
    if (options.hide_step && options.stage.shards_parameters()) hidden_ = std::make_unique<HiddenStep>(memory.device());
  }
  if (options.replicas != nullptr) replicas_ = std::make_unique<Replicas>(store_, *options.replicas);
}

Engine::~Engine() = default;

const void* Engine::pre_forward(std::size_t unit, Stream stream) {
  const auto home = graph_.at(unit) ? Slots::Home::fixed : Slots::Home::may_move;
  const void* const full = gatherer_.acquire(unit, Pass::forward, home, stream);
  if (hidden_) hidden_->let_go(unit, stream);
  return full;
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
  await_update(stream);
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
  await_update(stream);
  with(reducer_, [&](auto& reducer) { reducer.finish(left, stream); });
  if (replicas_) with(reducer_, [&](auto& reducer) { replicas_->average(reducer, stream); });
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

GradientReport Engine::gradient_report(Stream stream) {
  await_update(stream);
  GradientReport report =
      with(reducer_, [&](auto& reducer) { return exchange_gradient_report(store_, reducer, communicator_, stream); });
  report.loss_scale = loss_scale(stream).scale;
  report.norm /= report.loss_scale;
  return report;
}

void Engine::scale_gradients(float factor, Stream stream) {
  await_update(stream);
  with(reducer_, [&](auto& reducer) { reducer.scale_all(factor, stream); });
}

void Engine::scale_gradient(std::size_t unit, std::size_t param, float factor, Stream stream) {
  if (!store_.holds(unit, Role::grad)) return;
  await_update(stream);
  with(reducer_, [&](auto& reducer) { reducer.scale(unit, param, factor, stream); });
}

std::vector<std::vector<double>> Engine::square_sums(Stream stream) {
  await_update(stream);
  auto sums = exchange_square_sums(
      with(reducer_, [&](auto& reducer) { return statistics_by_param(store_, reducer, communicator_.rank(), stream); }),
      communicator_.host());
  const double scale = loss_scale(stream).scale;
  for (std::vector<double>& of_unit : sums) {
    for (double& sum : of_unit) sum /= scale * scale;
  }
  return sums;
}

void Engine::clear_gradients(Stream stream) {
  if (hidden_ && hidden_->under_way()) {
    for (std::size_t unit = 0; unit < unit_count(); ++unit) {
      if (!store_.holds(unit, Role::grad)) continue;
      if (auto gradient = store_.transient_gradient(unit)) hidden_->keep(unit, std::move(gradient));
    }
  }
  with(reducer_, [&](auto& reducer) { reducer.clear(stream); });
}

void Engine::clear_gradient(std::size_t unit, std::size_t param, Stream stream) {
  await_update(stream);
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
  await_update(stream);
  gatherer_.release_all(stream);
  with(reducer_, [&](auto& reducer) { reducer.abandon(stream); });
  graph_.assign(graph_.size(), false);
  held_.assign(held_.size(), false);
  in_backward_.assign(in_backward_.size(), false);
  if (replicas_) replicas_->give_up();
}

void Engine::begin_write() {
  await_update();
  gatherer_.finish_reads();
  communicator_.barrier({"write parameters", ""});
}

void Engine::write(std::size_t unit, std::size_t param, const float* values, Stream stream) {
  const Range range = layout(unit).param(param);
  if (!on_cpu(memory_)) return write_on_device(store_, unit, range, values, memory_.device(), stream);
  write_on_host(store_, unit, range, values);
}

void Engine::unfreeze(std::size_t unit) {
  const UnitSpec& spec = layout(unit).unit();
  if (spec.trainable) return;
  if (!on_cpu(memory_)) {
    throw InvalidArgument("unit '" + spec.name +
                          "' did not train when the engine was made, which is when memory of a device is planned: let "
                          "it train then, and freeze it afterwards (in Python: after aliquot.shard)");
  }
  communicator_.barrier({"unfreeze", spec.name});
  if (replicas_) replicas_->meet({"unfreeze", spec.name});
  store_.unfreeze(unit, communicator_, memory_);
  std::get<std::unique_ptr<Reducer>>(reducer_)->make_room(memory_);
  if (!store_.holds(unit, Role::master)) return;
  const Range held = store_.held_range(unit, Role::param);
  std::vector<float> values(held.size());
  cast(store_.bytes_of(unit, Role::param).data(), spec.dtype, values.data(), DType::fp32, values.size());
  write_on_host(store_, unit, held, values.data());
}

void Engine::end_write(Stream stream) { gatherer_.publish(stream); }

void Engine::read(std::size_t unit, void* whole, Stream stream) {
  await_update(stream);
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
