/// \file
/// The all_gathers of a ControlChannel, as rank 0 keeps them.
#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace aliquot {

/// Collects the ranks' parts under each name. Pure bookkeeping.
class Rounds {
 public:
  using Clock = std::chrono::steady_clock;
  using Parts = std::vector<std::optional<std::string>>;  ///< by rank

  explicit Rounds(std::size_t world_size) : world_size_(world_size) {}

  struct Round {
    Parts parts;
    Clock::time_point deadline;

    std::vector<int> missing() const;
  };

  /// A rank gives its part, and won't wait longer than until `deadline`. The round is returned, and forgotten, if it
  /// was the last.
  std::optional<Round> add(int rank, const std::string& name, std::string payload, Clock::time_point deadline);

  /// Takes out the rounds that `rank` is missing from. It gives nothing more.
  std::vector<std::pair<std::string, Round>> without(int rank);
  /// Takes out those whose deadline has passed.
  std::vector<std::pair<std::string, Round>> overdue(Clock::time_point now);
  /// The next deadline; `latest` if that comes before.
  Clock::time_point next_deadline(Clock::time_point latest) const;

 private:
  template <typename Condition>
  std::vector<std::pair<std::string, Round>> take_if(const Condition& condition);

  std::size_t world_size_;
  std::map<std::string, Round> rounds_;
};

}  // namespace aliquot
