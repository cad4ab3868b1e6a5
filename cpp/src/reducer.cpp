#include "aliquot/reducer.h"

#include <algorithm>
#include <string>

#include "outboxes.h"
#include "require_takeable.h"
#include "stopwatch.h"

namespace aliquot {

Reducer::Reducer(ShardStore& store, Communicator& communicator, MemoryResource& memory)
    : store_(store), communicator_(communicator), units_(store.unit_count()) {
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    units_[unit].present.resize(store.layout(unit).unit().params.size());
  }
  make_room(memory);
  if (communicator.one_sided()) chore_ = communicator.add_chore([this] { sum_for_peers(); });
}

void Reducer::make_room(MemoryResource& memory) {
  std::size_t largest = 0;
  std::vector<std::string> names;
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    const Layout& layout = store_.layout(unit);
    names.push_back(layout.unit().name);
    if (store_.holds(unit, Role::grad)) largest = std::max(largest, layout.numel());
  }
  outboxes_.reset();  // before there are others
  outbox_ = {};
  sums_ = {};
  if (communicator_.one_sided()) {
    outboxes_ = std::make_unique<Outboxes>(communicator_, std::move(names), largest);
  } else {
    outbox_ = Buffer(memory, largest * sizeof(float));
    sums_ = Buffer(memory, outbox_.bytes() / static_cast<std::size_t>(communicator_.world_size()));
  }
}

Reducer::~Reducer() = default;

void require_takeable(const ShardStore& store, std::size_t unit, const Gradients& gradients, bool offered) {
  const UnitSpec& spec = store.layout(unit).unit();
  const std::string named = "gradients of unit '" + spec.name + "'";
  if (!store.holds(unit, Role::grad)) throw InvalidArgument(named + ": the unit does not train; give it none");
  if (gradients.size() != spec.params.size()) {
    throw InvalidArgument(named + ": " + std::to_string(gradients.size()) + " for " +
                          std::to_string(spec.params.size()) + " parameters; give null where there is none");
  }
  if (offered) {
    throw InvalidArgument(named +
                          " came after it was reduced in this backward: a parameter of it is used outside the "
                          "unit. Put both uses into one unit with units=");
  }
}

bool Reducer::offer(std::size_t unit, const Gradients& gradients, Stream) {
  const Stopwatch stopwatch(statistics_.seconds);
  require_takeable(store_, unit, gradients, units_.at(unit).offered);
  if (outboxes_) return offer_one_sided(unit, gradients);
  reduce_two_sided(unit, gradients);
  return true;
}

void Reducer::finish(const Left& left, Stream) {
  const Stopwatch stopwatch(statistics_.seconds);
  for (const auto& [unit, gradients] : left) require_takeable(store_, unit, gradients, units_.at(unit).offered);
  const TimedScope waiting(timeline_, Activity::reduce, Hold::wait, "end of backward", 0, {});
  if (outboxes_) {
    finish_one_sided(left);
  } else {
    finish_two_sided(left);
  }
  for (Unit& unit : units_) unit.offered = unit.summed = false;
  agree_on_presence();
}

void Reducer::pack(std::size_t unit, const Gradients& gradients, float* full) const {
  const Layout& layout = store_.layout(unit);
  const TimedScope timed(timeline_, Activity::pack, Hold::work, layout.unit().name, layout.bytes(), {});
  std::size_t end = 0;
  for (std::size_t param = 0; param < gradients.size(); ++param) {
    const Range range = layout.param(param);
    std::fill(full + end, full + range.begin, 0.0F);
    if (gradients[param] != nullptr) {
      cast(gradients[param], layout.unit().dtype, full + range.begin, DType::fp32, range.size());
    } else {
      std::fill(full + range.begin, full + range.end, 0.0F);
    }
    end = range.end;
  }
  std::fill(full + end, full + layout.numel(), 0.0F);
}

void Reducer::note(std::size_t unit, const Gradients& gradients) {
  Unit& state = units_[unit];
  state.offered = true;
  for (std::size_t param = 0; param < gradients.size(); ++param) {
    if (gradients[param] != nullptr) state.present[param] = true;
  }
  ++statistics_.reduces;
  statistics_.bytes += store_.layout(unit).bytes();
}

void Reducer::accumulate(std::size_t unit, const std::vector<const float*>& shards) {
  Unit& state = units_[unit];
  const float factor = 1.0F / static_cast<float>(communicator_.world_size());
  const Accumulate accumulate = state.empty ? Accumulate::no : Accumulate::yes;
  state.statistics = reduce(shards, factor, store_.own(unit, Role::grad), accumulate);
  state.empty = false;
  state.unaveraged = true;
}

// Before, the gradients on the replicas were the same but for what the micro-step has added to them: so the mean of
// them is that gradient plus the mean of what was added, and no memory is needed for the latter.
void Reducer::average(std::size_t unit, Communicator& replicas, const Tag& tag) {
  const Stopwatch stopwatch(statistics_.seconds);
  Unit& state = units_.at(unit);
  const std::span<float> mine = store_.own(unit, Role::grad);
  const TimedScope timed(timeline_, Activity::reduce, Hold::work, tag.unit, mine.size_bytes(), {});
  if (state.empty) std::ranges::fill(mine, 0.0F);
  replicas.all_reduce(tag, mine);
  const float* const sum[] = {mine.data()};
  state.statistics = reduce(sum, 1.0F / static_cast<float>(replicas.world_size()), mine, Accumulate::no);
  state.empty = state.unaveraged = false;
}

void Reducer::reduce_two_sided(std::size_t unit, const Gradients& gradients) {
  auto* full = reinterpret_cast<float*>(outbox_.data());
  auto* sums = reinterpret_cast<float*>(sums_.data());
  pack(unit, gradients, full);
  const Layout& layout = store_.layout(unit);
  const TimedScope timed(timeline_, Activity::reduce, Hold::work, layout.unit().name, layout.bytes(), {});
  communicator_.reduce_scatter({"reduce", layout.unit().name}, full, {sums, layout.shard_numel()});
  note(unit, gradients);
  accumulate(unit, {sums});
}

void Reducer::finish_two_sided(const Left& left) {
  std::vector<const Gradients*> mine(units_.size(), nullptr);
  std::vector<float> wanted(units_.size(), 0.0F);
  for (const auto& [unit, gradients] : left) {
    mine.at(unit) = &gradients;
    wanted[unit] = 1.0F;
  }
  communicator_.all_reduce({"end of backward", ""}, wanted);
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    if (wanted[unit] == 0.0F) continue;
    reduce_two_sided(unit, mine[unit] ? *mine[unit] : Gradients(units_[unit].present.size(), nullptr));
  }
}

void Reducer::clear(Stream) {
  for (Unit& unit : units_) {
    unit.empty = true;
    unit.unaveraged = false;
    unit.present.assign(unit.present.size(), false);
    unit.statistics.reset();
  }
}

void Reducer::clear(std::size_t unit, std::size_t param, Stream) {
  Unit& state = units_.at(unit);
  state.present.at(param) = false;
  state.statistics.reset();
  const Range range = store_.layout(unit).param(param);
  if (!state.empty) std::ranges::fill(store_.held_part(unit, Role::grad, range), 0.0F);
}

void Reducer::agree_on_presence() {
  std::vector<float> ranks;
  for (const Unit& unit : units_) ranks.insert(ranks.end(), unit.present.begin(), unit.present.end());
  communicator_.all_reduce({"gradients present", ""}, ranks);
  auto next = ranks.begin();
  for (Unit& unit : units_) {
    for (std::size_t param = 0; param < unit.present.size(); ++param) unit.present[param] = *next++ > 0;
  }
}

GradStatistics Reducer::statistics(std::size_t unit) {
  Unit& state = units_.at(unit);
  if (state.empty) return {};
  if (!state.statistics) state.statistics = grad_statistics(store_.own(unit, Role::grad));
  return *state.statistics;
}

void Reducer::invalidate_statistics() {
  for (Unit& unit : units_) unit.statistics.reset();
}

void Reducer::restore(std::size_t unit, const std::vector<bool>& present, Stream) {
  std::ranges::fill(store_.block(unit, Role::grad), 0.0F);
  Unit& state = units_.at(unit);
  state.present = present;
  state.empty = false;
  state.statistics.reset();
}

void Reducer::scale_all(float factor, Stream) {
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    if (!units_[unit].empty) aliquot::scale(store_.block(unit, Role::grad), factor);
    units_[unit].statistics.reset();
  }
}

void Reducer::scale(std::size_t unit, std::size_t param, float factor, Stream) {
  const Range range = store_.layout(unit).param(param);
  if (!units_.at(unit).empty) aliquot::scale(store_.held_part(unit, Role::grad, range), factor);
  units_[unit].statistics.reset();
}

GradStatistics Reducer::measure(std::size_t unit, Range range, Stream) const {
  return grad_statistics(store_.held_part(unit, Role::grad, range));
}

std::size_t Reducer::outbox_bytes() const { return outboxes_ ? outboxes_->bytes() : outbox_.bytes() + sums_.bytes(); }

}  // namespace aliquot
