#include <cmath>
#include <cstring>

#include "aliquot/streams.h"
#include "device_reducer.h"
#include "gradient_report.h"

namespace aliquot {
namespace {

using cuda::DeviceStatistics;
using cuda::ReportShape;

DeviceStatistics statistics_in(const std::byte* report, std::size_t unit) {
  DeviceStatistics statistics;
  std::memcpy(&statistics, report + unit * sizeof statistics, sizeof statistics);
  return statistics;
}

/// Adds what one rank's report says of a unit.
void read_unit(const Layout& layout, int rank, const DeviceStatistics& said, double& square_sum,
               GradientReport& report) {
  square_sum += said.square_sum;
  report.non_finite += said.non_finite;
  if (said.non_finite > 0 && report.first_bad.empty()) {
    report.first_bad = param_name_at(layout, layout.shard(rank).begin + said.first_bad);
  }
}

}  // namespace

std::string param_name_at(const Layout& layout, std::size_t element) {
  for (const Segment& segment : layout.segments({element, element + 1}))
    return layout.unit().params[segment.param].name;
  return {};
}

GradientReport exchange_gradient_report(const ShardStore& store, DeviceReducer& reducer, Communicator& communicator,
                                        Stream stream) {
  const ReportShape& shape = reducer.report_shape();
  std::vector<std::byte> mine(shape.bytes());
  std::vector<std::byte> all(mine.size() * static_cast<std::size_t>(shape.world_size));
  copy_async(mine.data(), reducer.report(stream).data(), mine.size(), stream);
  synchronize(stream);
  communicator.host().all_gather({"gradient report", ""}, mine, all.data());
  GradientReport report;
  double square_sum = 0;
  std::size_t first_param = 0;
  for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
    const Layout& layout = store.layout(unit);
    std::vector<bool>& present = report.present.emplace_back(layout.unit().params.size(), false);
    for (int rank = 0; rank < shape.world_size; ++rank) {
      const std::byte* bytes = &all[mine.size() * static_cast<std::size_t>(rank)];
      read_unit(layout, rank, statistics_in(bytes, unit), square_sum, report);
      for (std::size_t param = 0; param < present.size(); ++param) {
        if (bytes[shape.present_offset() + first_param + param] != std::byte{0}) present[param] = true;
      }
    }
    first_param += present.size();
  }
  report.norm = std::sqrt(square_sum);
  return report;
}

}  // namespace aliquot
