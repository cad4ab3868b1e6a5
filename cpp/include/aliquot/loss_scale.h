/// \file
/// The factor that a loss is multiplied with so that small gradients survive 16 bits (Micikevicius et al., 2018,
/// section 3.2), and how it moves: the rule of torch.amp.GradScaler, on hosts and devices.
#pragma once

#include <cstdint>
#include <limits>

namespace aliquot {

/// Both factors 1: the scale stays as it is.
struct ScaleRule {
  double growth_factor = 2;
  double backoff_factor = 0.5;
  std::int64_t growth_interval = 2000;  ///< steps in a row without overflow until the scale grows
};

struct LossScale {
  float scale = 1;
  std::int32_t growth_tracker = 0;  ///< steps without overflow since the scale moved
  std::uint32_t overflow = 0;       ///< 1: a step since the last update was skipped

  /// What it is after the steps since the last update.
  constexpr LossScale updated(const ScaleRule& rule) const {
    if (overflow != 0) return {static_cast<float>(scale * rule.backoff_factor), 0, 0};
    if (growth_tracker + std::int64_t{1} != rule.growth_interval) return {scale, growth_tracker + 1, 0};
    const auto grown = static_cast<float>(scale * rule.growth_factor);
    return {grown <= std::numeric_limits<float>::max() ? grown : scale, 0, 0};
  }

  friend bool operator==(const LossScale&, const LossScale&) = default;
};

}  // namespace aliquot
