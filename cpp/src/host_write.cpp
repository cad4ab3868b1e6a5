#include "host_write.h"

#include <cstdint>
#include <span>

#include "aliquot/kernels.h"
#include "aliquot/split_master.h"

namespace aliquot {
namespace {

/// What of `range` a rank holds of a role, and the values that belong there.
struct Held {
  Held(const ShardStore& store, std::size_t unit, Role role, Range range, const float* values)
      : part(intersect(store.held_range(unit, role), range)), bytes(store.held_bytes(unit, role, range).data()),
        values(values + (part.begin - range.begin), part.size()) {}
  Range part;
  std::byte* bytes;
  std::span<const float> values;
};

void write_halves(const Held& held, std::uint16_t SplitMaster::* half) {
  auto* const to = reinterpret_cast<std::uint16_t*>(held.bytes);
  for (std::size_t i = 0; i < held.values.size(); ++i) to[i] = split_master(held.values[i]).*half;
}

void write_rounded(const Held& held, DType dtype) {
  cast(held.values.data(), DType::fp32, held.bytes, dtype, held.values.size());
}

}  // namespace

void write_on_host(const ShardStore& store, std::size_t unit, Range range, const float* values) {
  const auto held = [&](Role role) { return Held(store, unit, role, range, values); };
  const DType dtype = store.layout(unit).unit().dtype;
  const bool has_master = store.holds(unit, Role::master);
  if (dtype == DType::bf16 && store.master_form() == MasterForm::low16) {
    write_halves(held(Role::param), &SplitMaster::high);
    if (has_master) write_halves(held(Role::master), &SplitMaster::low);
  } else {
    write_rounded(held(Role::param), dtype);
    if (has_master) write_rounded(held(Role::master), DType::fp32);
  }
}

}  // namespace aliquot
