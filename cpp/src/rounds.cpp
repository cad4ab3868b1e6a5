#include "rounds.h"

#include <algorithm>

namespace aliquot {

std::vector<int> Rounds::Round::missing() const {
  std::vector<int> ranks;
  for (std::size_t r = 0; r < parts.size(); ++r) {
    if (!parts[r]) ranks.push_back(static_cast<int>(r));
  }
  return ranks;
}

std::optional<Rounds::Round> Rounds::add(int rank, const std::string& name, std::string payload,
                                         Clock::time_point deadline) {
  const auto [found, fresh] = rounds_.try_emplace(name, Round{Parts(world_size_), deadline});
  Round& round = found->second;
  round.parts[static_cast<std::size_t>(rank)] = std::move(payload);
  round.deadline = std::min(round.deadline, deadline);
  if (!round.missing().empty()) return {};
  return std::move(rounds_.extract(found).mapped());
}

template <typename Condition>
std::vector<std::pair<std::string, Rounds::Round>> Rounds::take_if(const Condition& condition) {
  std::vector<std::pair<std::string, Round>> taken;
  for (auto at = rounds_.begin(); at != rounds_.end();) {
    const auto here = at++;
    if (condition(here->second)) {
      auto node = rounds_.extract(here);
      taken.emplace_back(std::move(node.key()), std::move(node.mapped()));
    }
  }
  return taken;
}

std::vector<std::pair<std::string, Rounds::Round>> Rounds::without(int rank) {
  return take_if([rank](const Round& round) { return !round.parts[static_cast<std::size_t>(rank)]; });
}

std::vector<std::pair<std::string, Rounds::Round>> Rounds::overdue(Clock::time_point now) {
  return take_if([now](const Round& round) { return round.deadline <= now; });
}

Rounds::Clock::time_point Rounds::next_deadline(Clock::time_point latest) const {
  for (const auto& [name, round] : rounds_) latest = std::min(latest, round.deadline);
  return latest;
}

}  // namespace aliquot
