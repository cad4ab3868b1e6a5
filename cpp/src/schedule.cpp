#include "aliquot/schedule.h"

#include <algorithm>
#include <utility>

namespace aliquot {

Schedule::Schedule(std::vector<std::size_t> trace, std::span<const std::size_t> unit_bytes, std::size_t budget_bytes)
    : trace_(std::move(trace)), ahead_(trace_.size()) {
  for (std::size_t position = 0; position < trace_.size(); ++position) {
    std::vector<std::size_t>& units = ahead_[position];
    std::size_t bytes = 0;
    for (std::size_t next = position + 1; next < trace_.size(); ++next) {
      const std::size_t unit = trace_[next];
      if (unit == trace_[position] || std::ranges::find(units, unit) != units.end()) continue;
      bytes += unit_bytes[unit];
      if (bytes > budget_bytes) break;
      units.push_back(unit);
    }
  }
}

std::span<const std::size_t> Schedule::ahead(std::size_t position) const {
  if (position >= ahead_.size()) return {};
  return ahead_[position];
}

std::span<const std::size_t> Tracer::acquired(std::size_t unit) {
  const std::size_t position = seen_.size();
  seen_.push_back(unit);
  on_trace_ = on_trace_ && position < schedule_.trace().size() && schedule_.trace()[position] == unit;
  return on_trace_ ? schedule_.ahead(position) : std::span<const std::size_t>{};
}

void Tracer::end_pass() {
  if (!seen_.empty() && seen_ != schedule_.trace()) schedule_ = Schedule(seen_, unit_bytes_, budget_bytes_);
  seen_.clear();
  on_trace_ = true;
}

}  // namespace aliquot
