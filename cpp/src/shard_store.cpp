#include "aliquot/shard_store.h"

#include <string>

namespace aliquot {
namespace {

std::span<float> as_floats(std::byte* data, std::size_t numel) { return {reinterpret_cast<float*>(data), numel}; }

}  // namespace

std::string_view name_of(Role role) {
  switch (role) {
    case Role::param: return "param";
    case Role::grad: return "grad";
    case Role::exp_avg: return "exp_avg";
    case Role::exp_avg_sq: return "exp_avg_sq";
  }
  throw InvalidArgument("unknown role");
}

ShardStore::ShardStore(std::vector<UnitSpec> units, Stage stage, Communicator& communicator, MemoryResource& memory)
    : stage_(stage), rank_(communicator.rank()) {
  for (UnitSpec& unit : units) {
    if (unit.dtype != DType::fp32) {
      throw InvalidArgument("unit '" + unit.name + "' is " + std::string(name_of(unit.dtype)) +
                            "; this version trains fp32 parameters: convert the model with model.float() first");
    }
    layouts_.emplace_back(std::move(unit), communicator.world_size());
  }
  blocks_.resize(layouts_.size());
  for (std::size_t unit = 0; unit < layouts_.size(); ++unit) {
    for (Role role : all_roles) {
      if (holds(unit, role)) blocks_[unit][static_cast<std::size_t>(role)] = take(unit, role, communicator, memory);
    }
  }
}

Extent ShardStore::extent(Role role) const {
  const bool sharded = role == Role::param  ? stage_.shards_parameters()
                       : role == Role::grad ? stage_.shards_gradients()
                                            : stage_.shards_states();
  return sharded ? Extent::shard : Extent::whole;
}

bool ShardStore::holds(std::size_t unit, Role role) const {
  return role == Role::param || layout(unit).unit().trainable;
}

ShardStore::Block ShardStore::take(std::size_t unit, Role role, Communicator& communicator,
                                   MemoryResource& memory) const {
  const Layout& layout = layouts_[unit];
  Block block;
  block.bytes = extent(role) == Extent::whole ? layout.bytes() : layout.shard_bytes();
  const bool peers_read = communicator.one_sided() && (role == Role::param || role == Role::grad);
  if (peers_read) {
    block.peers = communicator.share(block.bytes);
  } else {
    block.buffer = Buffer(memory, block.bytes);
  }
  return block;
}

const ShardStore::Block& ShardStore::at(std::size_t unit, Role role) const {
  if (!holds(unit, role)) {
    throw InvalidArgument("unit '" + layout(unit).unit().name + "' does not train: it has no " +
                          std::string(name_of(role)));
  }
  return blocks_.at(unit)[static_cast<std::size_t>(role)];
}

std::span<float> ShardStore::block(std::size_t unit, Role role) const {
  const Block& block = at(unit, role);
  return as_floats(block.data(rank_), block.bytes / sizeof(float));
}

std::span<float> ShardStore::own(std::size_t unit, Role role) const {
  const std::span<float> held = block(unit, role);
  if (extent(role) == Extent::shard) return held;
  const Range range = layout(unit).shard(rank_);
  return held.subspan(range.begin, range.size());
}

Range ShardStore::held_range(std::size_t unit, Role role) const {
  return extent(role) == Extent::shard ? layout(unit).shard(rank_) : Range{0, layout(unit).numel()};
}

std::span<float> ShardStore::held_part(std::size_t unit, Role role, Range range) const {
  const Range held = held_range(unit, role);
  const Range part = intersect(held, range);
  return part.empty() ? std::span<float>{} : block(unit, role).subspan(part.begin - held.begin, part.size());
}

std::span<const float> ShardStore::peer(std::size_t unit, Role role, int owner) const {
  const Range range = layout(unit).shard(owner);
  const std::span<float> held = as_floats(at(unit, role).peers.part(owner), at(unit, role).bytes / sizeof(float));
  return extent(role) == Extent::shard ? held : held.subspan(range.begin, range.size());
}

std::span<float> ShardStore::mapped(std::size_t unit) const {
  return as_floats(at(unit, Role::param).peers.whole(), layout(unit).numel());
}

std::map<std::string_view, std::size_t> ShardStore::bytes() const {
  std::map<std::string_view, std::size_t> sum;
  for (const auto& roles : blocks_) {
    for (Role role : all_roles) sum[name_of(role)] += roles[static_cast<std::size_t>(role)].bytes;
  }
  return sum;
}

}  // namespace aliquot
