/// \file
/// From the order in which a pass gathered its units to what the next such pass gathers ahead: pure.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace aliquot {

/// For each gather of a traced pass: which units to start gathering behind it.
class Schedule {
 public:
  Schedule() = default;
  /// \param trace         units in the order in which they were acquired
  /// \param unit_bytes    bytes of each full unit
  /// \param budget_bytes  how much may be gathered ahead of its use at any time
  Schedule(std::vector<std::size_t> trace, std::span<const std::size_t> unit_bytes, std::size_t budget_bytes);

  const std::vector<std::size_t>& trace() const { return trace_; }
  /// Units to gather ahead after the gather at `position`, soonest first; empty behind the end.
  std::span<const std::size_t> ahead(std::size_t position) const;

 private:
  std::vector<std::size_t> trace_;
  std::vector<std::vector<std::size_t>> ahead_;
};

/// Follows passes of one kind (forward, or backward): records each, predicts by the one before. A pass that leaves
/// the traced order gets no more predictions until its end, and is the trace of the next.
class Tracer {
 public:
  Tracer(std::vector<std::size_t> unit_bytes, std::size_t budget_bytes)
      : unit_bytes_(std::move(unit_bytes)), budget_bytes_(budget_bytes) {}

  /// Records that `unit` was acquired; returns what to gather ahead now.
  std::span<const std::size_t> acquired(std::size_t unit);
  void end_pass();

 private:
  std::vector<std::size_t> unit_bytes_;
  std::size_t budget_bytes_;
  Schedule schedule_;
  std::vector<std::size_t> seen_;
  bool on_trace_ = true;
};

}  // namespace aliquot
