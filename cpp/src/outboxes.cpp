#include "outboxes.h"

#include <algorithm>
#include <ranges>
#include <utility>

#include "aliquot/error.h"

namespace aliquot {

/// Written by its rank before `said` is posted, and not again before every rank posted `taken`.
struct alignas(64) Outboxes::Record {
  Signal said;            ///< last micro-step this rank said its contribution of
  Signal taken;           ///< last micro-step this rank has summed its part of
  std::uint32_t content;  ///< the index of an outbox, or `nothing`, or `failure`
};

namespace {

constexpr std::uint32_t nothing = 0xfffffffe;
constexpr std::uint32_t failure = 0xffffffff;

auto ranks_of(const Communicator& communicator) { return std::views::iota(0, communicator.world_size()); }

}  // namespace

Outboxes::Outboxes(Communicator& communicator, std::vector<std::string> names, std::size_t box_floats)
    : communicator_(communicator), names_(std::move(names)), box_floats_(box_floats),
      boxes_(communicator.share((working + reserve) * box_floats * sizeof(float))),
      control_(communicator.share(names_.size() * sizeof(Record))), uses_(working + reserve) {}

Outboxes::Record& Outboxes::record(int rank, std::size_t unit) const {
  return reinterpret_cast<Record*>(control_.part(rank))[unit];
}

float* Outboxes::box(int rank, std::size_t index) const {
  return reinterpret_cast<float*>(boxes_.part(rank)) + index * box_floats_;
}

bool Outboxes::everyone_took(std::size_t unit, std::uint32_t micro_step) const {
  return std::ranges::all_of(ranks_of(communicator_),
                             [&](int rank) { return reached(record(rank, unit).taken, micro_step); });
}

std::optional<std::size_t> Outboxes::free_box(std::size_t count) const {
  for (std::size_t index = 0; index < count; ++index) {
    if (!uses_[index] || everyone_took(uses_[index]->unit, uses_[index]->micro_step)) return index;
  }
  return std::nullopt;
}

bool Outboxes::held_up(std::size_t index) const {
  return std::ranges::any_of(ranks_of(communicator_), [&](int rank) {
    return !reached(record(rank, uses_[index]->unit).said, uses_[index]->micro_step) && communicator_.waiting(rank);
  });
}

float* Outboxes::claim(std::size_t unit, std::size_t index) {
  uses_[index] = Use{unit, micro_step_};
  return box(communicator_.rank(), index);
}

float* Outboxes::take(std::size_t unit) {
  const auto all_held_up = [this] {
    return std::ranges::all_of(std::views::iota(std::size_t{0}, working),
                               [this](auto index) { return held_up(index); });
  };
  const auto done = [&] {
    require_nobody_gave_up();
    return free_box(working).has_value() || all_held_up();
  };
  communicator_.wait_until(done, "an outbox for unit '" + names_[unit] + "'");
  const auto index = free_box(working);
  return index ? claim(unit, *index) : nullptr;
}

float* Outboxes::take_in_order(std::size_t unit) {
  const auto done = [&] {
    require_nobody_gave_up();
    return free_box(working + reserve).has_value();
  };
  communicator_.wait_until(done, "an outbox for unit '" + names_[unit] + "'");
  return claim(unit, *free_box(working + reserve));
}

void Outboxes::say(std::size_t unit, std::uint32_t content) {
  const auto last_taken = [&] { return everyone_took(unit, micro_step_ - 1); };
  communicator_.wait_until(last_taken, "ranks to sum unit '" + names_[unit] + "'");
  Record& mine = record(communicator_.rank(), unit);
  mine.content = content;
  communicator_.post(mine.said, micro_step_);
}

void Outboxes::publish(std::size_t unit) {
  for (std::size_t index = 0; index < uses_.size(); ++index) {
    if (uses_[index] && uses_[index]->unit == unit && uses_[index]->micro_step == micro_step_) {
      return say(unit, static_cast<std::uint32_t>(index));
    }
  }
  throw Error("no outbox was taken for unit '" + names_[unit] + "'");
}

void Outboxes::publish_nothing(std::size_t unit) { say(unit, nothing); }

void Outboxes::publish_failure(std::size_t unit) { say(unit, failure); }

bool Outboxes::ready(std::size_t unit) const {
  bool all_said = true;
  for (const int rank : ranks_of(communicator_)) {
    const Record& said = record(rank, unit);
    if (!reached(said.said, micro_step_)) {
      all_said = false;
    } else if (said.content == failure) {
      const RankNames& names = communicator_.names();
      throw CommunicatorError("rank " + std::to_string(names.of(rank)) + " gave up the backward pass that rank " +
                              std::to_string(names.of(communicator_.rank())) + " waits for (unit '" + names_[unit] +
                              "'). Call aliquot.reset_step(model) on every rank and repeat the step");
    }
  }
  return all_said;
}

// Not of what this rank has taken: a peer that gave up may be writing the next micro-step's record there.
void Outboxes::require_nobody_gave_up() const {
  for (const std::optional<Use>& use : uses_) {
    if (!use || use->micro_step != micro_step_) continue;
    const bool taken = reached(record(communicator_.rank(), use->unit).taken, micro_step_);
    if (!taken) static_cast<void>(ready(use->unit));
  }
}

std::vector<const float*> Outboxes::contributions(std::size_t unit) const {
  std::vector<const float*> full;
  for (const int rank : ranks_of(communicator_)) {
    const std::uint32_t content = record(rank, unit).content;
    if (content != nothing) full.push_back(box(rank, content));
  }
  return full;
}

void Outboxes::took(std::size_t unit) { communicator_.post(record(communicator_.rank(), unit).taken, micro_step_); }

}  // namespace aliquot
