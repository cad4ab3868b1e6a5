/// \file
/// In which order the ranks reduce their units.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "aliquot/communicator.h"

namespace aliquot {

/// One order for all ranks, whatever paths they take through the model: a unit whose turn has not come is kept till the
/// end of the backward, where all get their turn. See docs/design.md, "One order of reductions".
class ReduceOrder {
 public:
  /// \param units  that train. Modules are mostly used in the order of their registration, so in the first micro-step
  /// the turn goes from the last unit to the first.
  explicit ReduceOrder(const std::vector<std::size_t>& units) : order_(units.rbegin(), units.rend()) {}

  /// Notes that the gradients of `unit` are there; true if it is the unit's turn.
  bool is_turn_of(std::size_t unit);
  /// The unit whose turn it was has been reduced.
  void advance() { ++next_; }
  /// Those that still have their turn before them, in order.
  std::span<const std::size_t> left() const { return std::span(order_).subspan(next_); }
  /// Ends the micro-step. The first time it is collective over `host`: from then on the order is that in which
  /// gradients came on rank 0.
  void end(Communicator& host);
  /// Gives the micro-step up.
  void restart();

 private:
  std::vector<std::size_t> order_;
  std::vector<std::size_t> arrived_;  ///< in the first micro-step
  std::size_t next_ = 0;
  bool learned_ = false;
};

}  // namespace aliquot
