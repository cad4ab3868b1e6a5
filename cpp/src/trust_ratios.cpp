#include "trust_ratios.h"

#include <span>

namespace aliquot {

TrustRatios::TrustRatios(const ShardStore& store, Communicator& communicator)
    : communicator_(communicator), sharded_(store.stage().shards_states()) {
  for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
    first_param_.push_back(params_);
    params_ += store.layout(unit).unit().params.size();
  }
  parts_.resize(params_ * static_cast<std::size_t>(communicator.world_size()));
}

NormSquares& TrustRatios::part(int rank, std::size_t unit, std::size_t param) {
  return parts_[static_cast<std::size_t>(rank) * params_ + first_param_[unit] + param];
}

void TrustRatios::exchange() {
  if (!sharded_) return;
  const auto mine = std::span(parts_).subspan(static_cast<std::size_t>(communicator_.rank()) * params_, params_);
  communicator_.all_gather({"norms of parameters", ""}, std::as_bytes(mine),
                           reinterpret_cast<std::byte*>(parts_.data()));
}

float TrustRatios::of(std::size_t unit, std::size_t param) const {
  NormSquares sum;
  for (std::size_t i = first_param_[unit] + param; i < parts_.size(); i += params_) sum += parts_[i];
  return trust_ratio(sum.param, sum.direction);
}

}  // namespace aliquot
