#include "device_reducer.h"

#include <algorithm>

#include "require_takeable.h"
#include "stopwatch.h"

namespace aliquot {
namespace {

/// Models that share a communicator may have units of the same names.
std::string operation_of(std::size_t engine) {
  return engine == 0 ? "reduce" : "reduce, model " + std::to_string(engine + 1);
}

std::vector<std::size_t> units_that_train(const ShardStore& store) {
  std::vector<std::size_t> units;
  for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
    if (store.holds(unit, Role::grad)) units.push_back(unit);
  }
  return units;
}

/// Of outboxes. What hosts add up first travels on as fp32.
DType box_dtype(const Layout& layout, const Communicator& communicator) {
  return communicator.sums_inside() ? DType::fp32 : layout.unit().dtype;
}

struct BoxBytes {
  std::size_t out = 0, in = 0;
};

BoxBytes box_bytes(const ShardStore& store, const Communicator& communicator, const Communicator* replicas) {
  BoxBytes bytes;
  std::size_t largest_sum = 0;
  for (const std::size_t unit : units_that_train(store)) {
    const Layout& layout = store.layout(unit);
    const std::size_t of_shard = layout.shard_numel() * size_of(box_dtype(layout, communicator));
    bytes.out = std::max(bytes.out, of_shard * static_cast<std::size_t>(layout.world_size()));
    largest_sum = std::max(largest_sum, layout.shard_numel() * sizeof(float));
  }
  if (communicator.sums_inside() || replicas != nullptr) bytes.in = largest_sum;
  if (!communicator.maps_peers() && !communicator.sums_inside()) bytes.in = std::max(bytes.in, bytes.out);
  return bytes;
}

cuda::ReportShape shape_of(const ShardStore& store) {
  cuda::ReportShape shape{.units = store.unit_count()};
  for (std::size_t unit = 0; unit < shape.units; ++unit) {
    shape.params += store.layout(unit).unit().params.size();
    shape.world_size = store.layout(unit).world_size();
  }
  return shape;
}

}  // namespace

std::size_t DeviceReducer::planned_bytes(const ShardStore& store, const Communicator& communicator,
                                         const Communicator* replicas) {
  const BoxBytes boxes = box_bytes(store, communicator, replicas);
  return 2 * DeviceArena::planned(boxes.out) + DeviceArena::planned(boxes.in) +
         DeviceArena::planned(cuda::reduce_workspace_bytes()) + DeviceArena::planned(shape_of(store).bytes()) +
         DeviceArena::planned(sizeof(float));
}

DeviceReducer::DeviceReducer(ShardStore& store, Communicator& communicator, MemoryResource& memory,
                             const Communicator* replicas)
    : store_(store), communicator_(communicator), device_(memory.device()), units_(store.unit_count()),
      order_(units_that_train(store)), operation_(operation_of(communicator.enlist())), shape_(shape_of(store)),
      stream_(device_, Priority::high), reduced_(device_), followed_(device_) {
  const BoxBytes boxes = box_bytes(store, communicator, replicas);
  std::size_t params = 0;
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    units_[unit].first_param = params;
    units_[unit].present.resize(store.layout(unit).unit().params.size());
    params += units_[unit].present.size();
  }
  for (Outbox& outbox : outboxes_) outbox = {Buffer(memory, boxes.out), Event(device_), Event(device_), 0};
  inbox_ = Buffer(memory, boxes.in);
  workspace_ = Buffer(memory, cuda::reduce_workspace_bytes());
  report_ = Buffer(memory, shape_.bytes());
  factor_ = Buffer(memory, sizeof(float));
}

cuda::DeviceStatistics* DeviceReducer::statistics_of(std::size_t unit) const {
  return reinterpret_cast<cuda::DeviceStatistics*>(report_.data()) + unit;
}

std::uint8_t* DeviceReducer::present_of(std::size_t unit) const {
  return reinterpret_cast<std::uint8_t*>(report_.data() + shape_.present_offset()) + units_[unit].first_param;
}

DeviceReducer::~DeviceReducer() {
  settle(communicator_);
  try {
    synchronize(stream_.get());
  } catch (const Error&) {
    return;  // the device has failed, or the runtime is gone: nothing is under way
  }
}

bool DeviceReducer::offer(std::size_t unit, const Gradients& gradients, Stream stream) {
  const Stopwatch stopwatch(statistics_.seconds);
  require_takeable(store_, unit, gradients, units_.at(unit).offered);
  if (!order_.is_turn_of(unit)) return false;
  take(unit, gradients, stream);
  return true;
}

void DeviceReducer::take(std::size_t unit, const Gradients& gradients, Stream stream) {
  Unit& state = units_[unit];
  const Layout& layout = store_.layout(unit);
  if (state.of_before) {
    throw InvalidArgument("unit '" + layout.unit().name +
                          "' has gradients of before the step that is captured: call zero_grad() in the step, before "
                          "its first backward, or at its end");
  }
  const DeviceGuard guard(device_);
  store_.take_gradient(unit, stream);  // which may throw: ranks that repeat the step must find the same outbox next
  Outbox& outbox = outboxes_[next_outbox_ % outboxes_.size()];
  communicator_.await(outbox.launch);
  block(outbox.sent, stream, timeline_, Activity::reduce, layout.unit().name);
  pack(unit, gradients, outbox, stream);
  send(unit, outbox);
  if (capturing_) communicator_.await(Communicator::every_launch);
  ++next_outbox_;
  for (std::size_t param = 0; param < gradients.size(); ++param) {
    if (gradients[param] != nullptr) state.present[param] = true;
  }
  state.offered = true;
  state.empty = false;
  order_.advance();
  ++statistics_.reduces;
  statistics_.bytes += layout.bytes();
}

void DeviceReducer::pack(std::size_t unit, const Gradients& gradients, Outbox& outbox, Stream stream) {
  const Layout& layout = store_.layout(unit);
  std::vector<cuda::PackSource> sources;
  for (const void* gradient : gradients) sources.push_back({gradient, layout.unit().dtype});
  {
    const TimedScope timed(timeline_, Activity::pack, Hold::work, layout.unit().name, layout.bytes(), stream);
    cuda::pack(layout, sources, outbox.memory.data(), box_dtype(layout, communicator_), present_of(unit), stream);
  }
  outbox.packed.record(stream);
}

void DeviceReducer::note_present(std::size_t unit, std::size_t param, Stream stream) {
  if (units_.at(unit).present.at(param)) return;
  units_[unit].present[param] = true;
  fill_async(present_of(unit) + param, 1, 1, stream);
}

void DeviceReducer::profile(Timeline* timeline) {
  timeline_ = timeline;
  settle(communicator_);  // what was launched may still use the one before
}

void DeviceReducer::finish(const Left& left, Stream stream) {
  std::vector<const Gradients*> mine(units_.size(), nullptr);
  for (const auto& [unit, gradients] : left) {
    require_takeable(store_, unit, gradients, units_.at(unit).offered);
    mine[unit] = &gradients;
  }
  while (!order_.left().empty()) {
    const std::size_t unit = order_.left().front();
    take(unit, mine[unit] ? *mine[unit] : Gradients(units_[unit].present.size(), nullptr), stream);
  }
  order_.end(communicator_.host());
  for (Unit& unit : units_) unit.offered = false;
  await_sums(stream);
}

void DeviceReducer::await_sums(Stream stream) {
  communicator_.await(Communicator::every_launch);
  reduced_.record(stream_.get());
  block(reduced_, stream, timeline_, Activity::reduce, "end of backward");
}

void DeviceReducer::renew() {
  communicator_.await(Communicator::every_launch);
  synchronize(stream_.get());
  for (Event* event : {&reduced_, &followed_}) *event = Event(device_);
  for (Outbox& outbox : outboxes_) {
    outbox.packed = Event(device_);
    outbox.sent = Event(device_);
  }
}

void DeviceReducer::begin_capture() {
  capturing_ = true;
  for (Unit& unit : units_) unit.of_before = !unit.empty;
}

void DeviceReducer::end_capture() {
  capturing_ = false;
  for (Unit& unit : units_) unit.of_before = false;
}

void DeviceReducer::follow(Stream stream) {
  followed_.record(stream);
  followed_.block(stream_.get());
}

void DeviceReducer::abandon(Stream stream) {
  order_.restart();
  for (Unit& unit : units_) unit.offered = false;
  clear(stream);
}

void DeviceReducer::clear(Stream stream) {
  await_sums(stream);
  store_.drop_gradients();
  for (Unit& unit : units_) {
    unit.empty = true;
    unit.of_before = false;
    unit.present.assign(unit.present.size(), false);
  }
  fill_async(report_.data(), 0, report_.bytes(), stream);
}

void DeviceReducer::clear(std::size_t unit, std::size_t param, Stream stream) {
  units_.at(unit).present.at(param) = false;
  const std::span<std::byte> held = store_.held_bytes(unit, Role::grad, store_.layout(unit).param(param));
  fill_async(present_of(unit) + param, 0, 1, stream);
  if (units_[unit].empty || held.empty()) return;
  fill_async(held.data(), 0, held.size_bytes(), stream);
  stale_ = true;
}

void DeviceReducer::restore(std::size_t unit, const std::vector<bool>& present, Stream stream) {
  const DeviceGuard guard(device_);
  store_.take_gradient(unit, stream);
  const std::span<std::byte> held = store_.bytes_of(unit, Role::grad);
  fill_async(held.data(), 0, held.size_bytes(), stream);
  Unit& state = units_.at(unit);
  for (std::size_t param = 0; param < present.size(); ++param) {
    fill_async(present_of(unit) + param, present[param] ? 1 : 0, 1, stream);
  }
  state.present = present;
  state.empty = false;
  stale_ = true;
}

}  // namespace aliquot
