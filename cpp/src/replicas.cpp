#include "replicas.h"

#include <algorithm>

#include "aliquot/error.h"
#include "device_reducer.h"

namespace aliquot {
namespace {

// A message: whether the rank gives up; then of each unit, whether its group has added to it, and which parameters have
// a gradient.
constexpr std::byte yes{1};

}  // namespace

Replicas::Replicas(const ShardStore& store, Communicator& counterparts)
    : store_(store), counterparts_(counterparts), engine_(counterparts.enlist()) {
  for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
    message_bytes_ += 1 + store.layout(unit).unit().params.size();
  }
}

// Groups that differ in how many steps they have made would go on with different parameters: the tags tell.
std::string Replicas::operation() const {
  const std::string operation = "gradients of step " + std::to_string(steps_);
  return engine_ == 0 ? operation : operation + ", model " + std::to_string(engine_ + 1);
}

template <typename AnyReducer>
std::vector<std::byte> Replicas::message_of(const AnyReducer& reducer) const {
  std::vector<std::byte> message{std::byte{0}};
  for (std::size_t unit = 0; unit < store_.unit_count(); ++unit) {
    message.push_back(static_cast<std::byte>(reducer.unaveraged(unit)));
    for (std::size_t param = 0; param < store_.layout(unit).unit().params.size(); ++param) {
      message.push_back(static_cast<std::byte>(reducer.present(unit, param)));
    }
  }
  return message;
}

std::vector<std::byte> Replicas::exchange(std::span<const std::byte> mine, const std::string& operation) {
  const auto replicas = static_cast<std::size_t>(counterparts_.world_size());
  std::vector<std::byte> all(replicas * mine.size());
  met_ = true;
  counterparts_.host().all_gather({operation, ""}, mine, all.data());
  return all;
}

void Replicas::require_nobody_gave_up(std::span<const std::byte> said) const {
  for (int replica = 0; replica < counterparts_.world_size(); ++replica) {
    if (said[static_cast<std::size_t>(replica) * message_bytes_] != yes) continue;
    throw CommunicatorError("rank " + std::to_string(counterparts_.names().of(replica)) +
                            " gave up the backward pass that rank " +
                            std::to_string(counterparts_.names().of(counterparts_.rank())) +
                            " has finished. Call aliquot.reset_step(model) on every rank and repeat the step");
  }
}

template <typename AnyReducer>
void Replicas::average(AnyReducer& reducer, Stream stream) {
  const std::string operation = this->operation();
  const std::vector<std::byte> said = exchange(message_of(reducer), operation);
  require_nobody_gave_up(said);
  const auto any = [&](std::size_t place) {
    for (std::size_t at = place; at < said.size(); at += message_bytes_) {
      if (said[at] == yes) return true;
    }
    return false;
  };
  std::size_t place = 1;
  for (std::size_t unit = 0; unit < store_.unit_count(); ++unit) {
    const UnitSpec& spec = store_.layout(unit).unit();
    if (any(place++)) reducer.average(unit, counterparts_, {operation, spec.name});
    for (std::size_t param = 0; param < spec.params.size(); ++param) {
      if (any(place++)) reducer.note_present(unit, param, stream);
    }
  }
  if constexpr (requires { reducer.await_sums(stream); }) reducer.await_sums(stream);
  met_ = false;
}

template void Replicas::average(Reducer&, Stream);
template void Replicas::average(DeviceReducer&, Stream);

void Replicas::give_up() {
  std::vector<std::byte> message(message_bytes_);
  message.front() = yes;
  if (!met_) exchange(message, operation());
  met_ = false;
}

}  // namespace aliquot
