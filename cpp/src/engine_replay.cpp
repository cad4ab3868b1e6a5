#include <string>

#include "aliquot/engine.h"
#include "aliquot/error.h"
#include "device_optimizer.h"
#include "device_reducer.h"

// docs/design.md, "Steps in a graph".
namespace aliquot {

void Engine::require_replayable() const {
  if (!communicator_.maps_peers()) {
    throw InvalidArgument("steps in a graph need the transport peer, not " + std::string(communicator_.name()));
  }
  require_groups("a graph");
  if (timeline_ != nullptr) throw InvalidArgument("a graph can't be captured while the model is profiled");
}

void Engine::renew() {
  require_replayable();
  capturing_ = false;
  gatherer_.renew();
  std::get<std::unique_ptr<DeviceReducer>>(reducer_)->renew();
}

void Engine::begin_capture(Stream stream) {
  require_replayable();
  gatherer_.follow(stream);
  std::get<std::unique_ptr<DeviceReducer>>(reducer_)->follow(stream);
  capturing_ = true;
}

void Engine::end_capture(Stream stream) {
  gatherer_.finish_reads(stream);
  std::get<std::unique_ptr<DeviceReducer>>(reducer_)->await_sums(stream);
  capturing_ = false;
}

void Engine::begin_replay(std::span<const Rule> rules, Stream stream) {
  std::get<std::unique_ptr<DeviceOptimizer>>(optimizer_)->send(rules, stream);
}

StepResult Engine::end_replay(Stream stream) {
  gatherer_.forget_all();
  gatherer_.follow(stream);
  std::get<std::unique_ptr<DeviceReducer>>(reducer_)->follow(stream);
  return std::get<std::unique_ptr<DeviceOptimizer>>(optimizer_)->receive(stream);
}

}  // namespace aliquot
