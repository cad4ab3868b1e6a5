#include <string>

#include "aliquot/engine.h"
#include "aliquot/error.h"
#include "device_optimizer.h"
#include "device_reducer.h"
#include "hidden_step.h"
#include "replicas.h"

// docs/design.md, "Steps in a graph".
namespace aliquot {

void Engine::require_replayable() const {
  if (!communicator_.maps_peers()) {
    throw InvalidArgument("steps in a graph need the transport peer, not " + std::string(communicator_.name()));
  }
  if (replicas_) throw InvalidArgument("steps in a graph need all ranks in one group: shard without replicas");
  require_groups("a graph");
  if (timeline_ != nullptr) throw InvalidArgument("a graph can't be captured while the model is profiled");
}

DeviceReducer& Engine::device_reducer() const { return *std::get<std::unique_ptr<DeviceReducer>>(reducer_); }

void Engine::renew() {
  require_replayable();
  captured_steps_.reset();
  gatherer_.end_capture();
  device_reducer().end_capture();
  if (hidden_) hidden_->renew();
  gatherer_.renew();
  device_reducer().renew();
}

void Engine::begin_capture(Stream stream) {
  require_replayable();
  gatherer_.follow(stream);
  device_reducer().follow(stream);
  gatherer_.begin_capture();
  device_reducer().begin_capture();
  captured_steps_ = 0;
}

void Engine::end_capture(Stream stream) {
  gatherer_.finish_reads(stream);
  device_reducer().await_sums(stream);
  await_update(stream);
  if (captured_steps_ == 0) {
    throw InvalidArgument("what was captured holds no step of the optimizer: call its step() there");
  }
}

// What the engine's streams still do for steps as they are (ranks meet there behind an update, and gather ahead) comes
// first.
void Engine::begin_replay(std::span<const Rule> rules, Stream stream) {
  communicator_.require_intact();
  await_update(stream);
  gatherer_.finish_reads(stream);
  device_reducer().await_sums(stream);
  std::get<std::unique_ptr<DeviceOptimizer>>(optimizer_)->send(rules, stream);
}

StepResult Engine::end_replay(Stream stream) {
  release_held(stream);
  graph_.assign(graph_.size(), false);
  gatherer_.forget_all();
  gatherer_.follow(stream);
  device_reducer().follow(stream);
  communicator_.mark(stream);
  return std::get<std::unique_ptr<DeviceOptimizer>>(optimizer_)->receive(stream);
}

}  // namespace aliquot
