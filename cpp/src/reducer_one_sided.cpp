#include <algorithm>

#include "aliquot/error.h"
#include "aliquot/reducer.h"
#include "outboxes.h"

namespace aliquot {

bool Reducer::offer_one_sided(std::size_t unit, const Gradients& gradients) {
  float* full = take_box(unit);
  if (full == nullptr) return false;
  pack(unit, gradients, full);
  outboxes_->publish(unit);
  note(unit, gradients);
  sum_what_is_ready();
  return true;
}

float* Reducer::take_box(std::size_t unit) {
  const TimedScope waiting(timeline_, Activity::reduce, Hold::wait, store_.layout(unit).unit().name, 0, {});
  return outboxes_->take(unit);
}

void Reducer::finish_one_sided(const Left& left) {
  std::vector<const Gradients*> mine(units_.size(), nullptr);
  for (const auto& [unit, gradients] : left) mine.at(unit) = &gradients;
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    if (!units_[unit].offered && mine[unit] == nullptr && store_.holds(unit, Role::grad)) {
      outboxes_->publish_nothing(unit);
      units_[unit].offered = true;
    }
  }
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    if (mine[unit] == nullptr) continue;
    pack(unit, *mine[unit], outboxes_->take_in_order(unit));
    outboxes_->publish(unit);
    note(unit, *mine[unit]);
  }
  const auto all_summed = [this] {
    sum_what_is_ready();
    return std::ranges::none_of(units_, [](const Unit& unit) { return unit.offered && !unit.summed; });
  };
  communicator_.wait_until(all_summed, "all gradients of this backward");
  outboxes_->next_micro_step();
}

void Reducer::sum_what_is_ready() {
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    if (!units_[unit].offered || units_[unit].summed || !outboxes_->ready(unit)) continue;
    const Layout& layout = store_.layout(unit);
    const TimedScope timed(timeline_, Activity::reduce, Hold::work, layout.unit().name, layout.bytes(), {});
    std::vector<const float*> shards = outboxes_->contributions(unit);
    for (const float*& shard : shards) shard += layout.shard(communicator_.rank()).begin;
    if (!shards.empty()) accumulate(unit, shards);
    units_[unit].summed = true;
    outboxes_->took(unit);
  }
}

// A wait for something else is no place for another model's failure: this one meets it again in its own finish.
void Reducer::sum_for_peers() noexcept {
  try {
    sum_what_is_ready();
  } catch (const CommunicatorError&) {
    return;
  }
}

void Reducer::abandon(Stream) {
  std::vector<bool> offered(units_.size());
  for (std::size_t unit = 0; unit < units_.size(); ++unit) offered[unit] = units_[unit].offered;
  for (Unit& unit : units_) unit.offered = unit.summed = false;
  clear();
  if (outboxes_) give_up(offered);
}

void Reducer::give_up(const std::vector<bool>& offered) {
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    if (store_.holds(unit, Role::grad)) outboxes_->took(unit);
  }
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    if (store_.holds(unit, Role::grad) && !offered[unit]) outboxes_->publish_failure(unit);
  }
  outboxes_->next_micro_step();
}

}  // namespace aliquot
