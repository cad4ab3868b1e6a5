#include "gradient_report.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace aliquot {
namespace {

constexpr std::uint64_t none = std::numeric_limits<std::uint64_t>::max();

/// What a rank says of its shard of a unit.
struct UnitReport {
  GradStatistics statistics;
  std::uint64_t first_bad = none;  ///< index of a parameter in the unit
};

/// The place of everything in a rank's message: the units' reports, then one byte per parameter, 1 where present.
class Message {
 public:
  explicit Message(const ShardStore& store) : units_(store.unit_count()) {
    for (std::size_t unit = 0; unit < units_; ++unit) {
      first_.push_back(params_);
      params_ += store.layout(unit).unit().params.size();
    }
  }
  std::size_t bytes() const { return units_ * sizeof(UnitReport) + params_; }
  std::size_t report(std::size_t unit) const { return unit * sizeof(UnitReport); }
  std::size_t present(std::size_t unit, std::size_t param) const {
    return units_ * sizeof(UnitReport) + first_[unit] + param;
  }

 private:
  std::size_t units_;
  std::size_t params_ = 0;
  std::vector<std::size_t> first_;
};

std::uint64_t first_bad_param(const ShardStore& store, std::size_t unit) {
  const Range held = store.held_range(unit, Role::grad);
  for (const Segment& segment : store.layout(unit).segments(held)) {
    const std::span<const float> part = store.held_part(unit, Role::grad, segment.range);
    if (!std::ranges::all_of(part, [](float value) { return std::isfinite(value); })) return segment.param;
  }
  return none;
}

std::vector<std::byte> write(const Message& message, const ShardStore& store, Reducer& reducer) {
  std::vector<std::byte> bytes(message.bytes());
  for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
    if (!store.holds(unit, Role::grad)) continue;
    UnitReport report{reducer.statistics(unit), none};
    if (report.statistics.non_finite > 0) report.first_bad = first_bad_param(store, unit);
    std::memcpy(&bytes[message.report(unit)], &report, sizeof report);
    for (std::size_t param = 0; param < store.layout(unit).unit().params.size(); ++param) {
      bytes[message.present(unit, param)] = static_cast<std::byte>(reducer.present(unit, param));
    }
  }
  return bytes;
}

/// Adds what `bytes`, a rank's message, says of `unit`.
void read(const Message& message, const Layout& layout, std::size_t unit, const std::byte* bytes, double& square_sum,
          GradientReport& report) {
  UnitReport said;
  std::memcpy(&said, bytes + message.report(unit), sizeof said);
  square_sum += said.statistics.square_sum;
  report.non_finite += said.statistics.non_finite;
  const auto& params = layout.unit().params;
  if (said.statistics.non_finite > 0 && said.first_bad < params.size() && report.first_bad.empty()) {
    report.first_bad = params[said.first_bad].name;
  }
  for (std::size_t param = 0; param < params.size(); ++param) {
    if (bytes[message.present(unit, param)] != std::byte{0}) report.present[unit][param] = true;
  }
}

}  // namespace

GradientReport exchange_gradient_report(const ShardStore& store, Reducer& reducer, Communicator& communicator, Stream) {
  const Message message(store);
  const std::vector<std::byte> mine = write(message, store, reducer);
  std::vector<std::byte> all(mine.size() * static_cast<std::size_t>(communicator.world_size()));
  communicator.all_gather({"step", ""}, mine, all.data());
  GradientReport report;
  double square_sum = 0;
  for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
    const Layout& layout = store.layout(unit);
    report.present.emplace_back(layout.unit().params.size(), false);
    for (std::size_t rank = 0; rank < static_cast<std::size_t>(communicator.world_size()); ++rank) {
      read(message, layout, unit, &all[rank * mine.size()], square_sum, report);
    }
  }
  report.norm = std::sqrt(square_sum);
  return report;
}

std::vector<std::vector<double>> exchange_square_sums(const std::vector<std::vector<GradStatistics>>& mine,
                                                      Communicator& communicator) {
  std::vector<double> flat;
  for (const std::vector<GradStatistics>& of_unit : mine) {
    for (const GradStatistics& said : of_unit) flat.push_back(said.non_finite == 0 ? said.square_sum : std::nan(""));
  }
  std::vector<double> all(flat.size() * static_cast<std::size_t>(communicator.world_size()));
  communicator.all_gather({"square sums", ""}, std::as_bytes(std::span(flat)),
                          reinterpret_cast<std::byte*>(all.data()));
  std::vector<std::vector<double>> sums;
  std::size_t next = 0;
  for (const std::vector<GradStatistics>& of_unit : mine) {
    for (double& sum : sums.emplace_back(of_unit.size(), 0.0)) {
      for (std::size_t at = next; at < all.size(); at += flat.size()) sum += all[at];
      ++next;
    }
  }
  return sums;
}

}  // namespace aliquot
