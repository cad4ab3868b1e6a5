#include "reduce_order.h"

#include <algorithm>
#include <utility>

namespace aliquot {

bool ReduceOrder::is_turn_of(std::size_t unit) {
  if (!learned_) arrived_.push_back(unit);
  return next_ < order_.size() && order_[next_] == unit;
}

void ReduceOrder::end(Communicator& host) {
  if (!learned_) {
    std::vector<std::size_t> order;
    for (const auto& units : {arrived_, order_}) {
      for (const std::size_t unit : units) {
        if (std::ranges::find(order, unit) == order.end()) order.push_back(unit);
      }
    }
    host.broadcast({"reduce", "order"}, std::as_writable_bytes(std::span(order)), 0);
    order_ = std::move(order);
  }
  learned_ = true;
  restart();
}

void ReduceOrder::restart() {
  arrived_.clear();
  next_ = 0;
}

}  // namespace aliquot
