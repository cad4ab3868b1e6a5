#include "aliquot/shard_store.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "aliquot/quantization.h"

namespace aliquot {
namespace {

std::span<float> as_floats(std::byte* data, std::size_t numel) { return {reinterpret_cast<float*>(data), numel}; }

}  // namespace

std::string_view name_of(Role role) {
  switch (role) {
    case Role::param: return "param";
    case Role::master: return "master";
    case Role::grad: return "grad";
    case Role::exp_avg: return "exp_avg";
    case Role::exp_avg_sq: return "exp_avg_sq";
    case Role::momentum_buffer: return "momentum_buffer";
    case Role::sum: return "sum";
  }
  throw InvalidArgument("unknown role");
}

ShardStore::ShardStore(std::vector<UnitSpec> units, Stage stage, Communicator& communicator, MemoryResource& memory,
                       StoreOptions options)
    : stage_(stage), options_(std::move(options)), rank_(communicator.rank()), world_size_(communicator.world_size()) {
  for (UnitSpec& unit : units) {
    require_possible(unit, memory);
    layouts_.emplace_back(std::move(unit), communicator.world_size());
  }
  blocks_.resize(layouts_.size());
  for (std::size_t unit = 0; unit < layouts_.size(); ++unit) {
    for (Role role : all_roles) {
      if (is_state(role) || (role == Role::grad && gradients_are_transient())) continue;
      if (holds(unit, role)) blocks_[unit][static_cast<std::size_t>(role)] = take(unit, role, communicator, memory);
    }
  }
}

void ShardStore::require_possible(const UnitSpec& unit, const MemoryResource& memory) const {
  if (unit.dtype == DType::fp32 || !unit.trainable) return;
  const std::string is = "unit '" + unit.name + "' is " + std::string(name_of(unit.dtype));
  if (unit.dtype == DType::fp16 && options_.master == MasterForm::low16) {
    throw InvalidArgument(is + "; only bf16 has a master of 16 more bits: ask for an fp32 master");
  }
  const bool on_cpu = memory.device().type == Device::Type::cpu;
  if (options_.gradients == DType::fp32 || (options_.gradients == DType::bf16 && !on_cpu)) return;
  throw InvalidArgument(is + ", and its gradients were to be kept in " + std::string(name_of(options_.gradients)) +
                        (on_cpu ? "; CPUs keep them in fp32" : "; devices keep them in fp32 or bf16"));
}

Extent ShardStore::extent(Role role) const {
  const bool sharded = role == Role::param  ? stage_.shards_parameters()
                       : role == Role::grad ? stage_.shards_gradients()
                                            : stage_.shards_states();
  return sharded ? Extent::shard : Extent::whole;
}

bool ShardStore::holds(std::size_t unit, Role role) const {
  const UnitSpec& spec = layout(unit).unit();
  if (role == Role::param || !spec.trainable) return role == Role::param;
  if (is_state(role)) return std::ranges::find(states_, role) != states_.end();
  return role != Role::master || spec.dtype != DType::fp32;
}

void ShardStore::hold_states(std::span<const Role> states, MemoryResource& memory, StateForm form) {
  for (auto& roles : blocks_) {
    for (const Role role : all_roles) {
      if (is_state(role)) roles[static_cast<std::size_t>(role)] = {};
    }
  }
  states_.assign(states.begin(), states.end());
  state_form_ = form;
  std::vector<std::size_t> units(unit_count());
  std::iota(units.begin(), units.end(), std::size_t{0});
  take_states(units, memory);
}

void ShardStore::take_states(std::span<const std::size_t> units, MemoryResource& memory) {
  std::size_t bytes = 0;
  const auto for_each_state = [&](const auto& body) {
    for (const std::size_t unit : units) {
      for (const Role role : states_) body(unit, role, stepped_range(unit).size() * width(unit, role));
    }
  };
  for_each_state([&](std::size_t unit, Role, std::size_t size) {
    bytes += DeviceArena::planned(size) + DeviceArena::planned(scale_count(unit) * sizeof(float));
  });
  const auto whole = std::make_shared<Buffer>(memory, bytes);
  std::byte* next = whole->data();
  const auto take = [&next](std::size_t size) { return std::exchange(next, next + DeviceArena::planned(size)); };
  for_each_state([&](std::size_t unit, Role role, std::size_t size) {
    if (size == 0) return;
    Block& block = blocks_[unit][static_cast<std::size_t>(role)];
    block.lent = {whole, take(size)};
    block.bytes = size;
    if (const std::size_t count = scale_count(unit)) block.scales = as_floats(take(count * sizeof(float)), count);
  });
}

std::size_t ShardStore::scale_count(std::size_t unit) const {
  const std::size_t numel = stepped_range(unit).size();
  if (state_form_ == StateForm::fp32 || numel == 0) return 0;
  return scale_slot(numel, layout(unit).unit().params.size(), layout(unit).shard_numel());
}

void ShardStore::unfreeze(std::size_t unit, Communicator& communicator, MemoryResource& memory) {
  Layout trained = layout(unit);
  trained.unfreeze();
  require_possible(trained.unit(), memory);
  layouts_[unit] = std::move(trained);
  for (const Role role : {Role::master, Role::grad}) {
    if (holds(unit, role)) blocks_[unit][static_cast<std::size_t>(role)] = take(unit, role, communicator, memory);
  }
  take_states({&unit, 1}, memory);
}

DType ShardStore::gradient_dtype(std::size_t unit) const {
  return layout(unit).unit().dtype == DType::fp32 ? DType::fp32 : options_.gradients;
}

std::size_t ShardStore::width(std::size_t unit, Role role) const {
  if (role == Role::param) return size_of(layout(unit).unit().dtype);
  if (role == Role::grad) return size_of(gradient_dtype(unit));
  if (is_state(role)) return state_form_ == StateForm::quantized ? sizeof(std::uint8_t) : sizeof(float);
  return role == Role::master && options_.master == MasterForm::low16 ? 2 : 4;
}

ShardStore::Block ShardStore::take(std::size_t unit, Role role, Communicator& communicator,
                                   MemoryResource& memory) const {
  const Layout& layout = layouts_[unit];
  Block block;
  block.bytes = width(unit, role) * (extent(role) == Extent::whole ? layout.numel() : layout.shard_numel());
  const bool peers_read = communicator.one_sided() && (role == Role::param || role == Role::grad);
  if (peers_read) {
    block.peers = communicator.share(block.bytes);
  } else {
    block.buffer = Buffer(memory, block.bytes);
  }
  return block;
}

void ShardStore::take_gradient(std::size_t unit, Stream stream) {
  Block& block = blocks_.at(unit)[static_cast<std::size_t>(Role::grad)];
  if (!gradients_are_transient() || block.lent) return;
  block.bytes = width(unit, Role::grad) * layout(unit).shard_numel();
  block.lent = options_.transient(block.bytes, stream);
}

void ShardStore::drop_gradients() {
  if (!gradients_are_transient()) return;
  for (auto& roles : blocks_) roles[static_cast<std::size_t>(Role::grad)] = {};
}

const ShardStore::Block& ShardStore::at(std::size_t unit, Role role) const {
  if (!holds(unit, role)) {
    const char* why = !layout(unit).unit().trainable ? "' does not train: it has no "
                      : is_state(role)               ? "': no optimizer asked for "
                                                     : "' is fp32: it has no ";
    throw InvalidArgument("unit '" + layout(unit).unit().name + why + std::string(name_of(role)));
  }
  return blocks_.at(unit)[static_cast<std::size_t>(role)];
}

std::span<std::byte> ShardStore::bytes_of(std::size_t unit, Role role) const {
  const Block& block = at(unit, role);
  return {block.data(rank_), block.bytes};
}

std::span<std::byte> ShardStore::own_bytes(std::size_t unit, Role role) const {
  const std::span<std::byte> held = bytes_of(unit, role);
  return extent(role) == Extent::shard ? held : held.subspan(start_of(unit, role, rank_), shard_bytes(unit, role));
}

std::size_t ShardStore::start_of(std::size_t unit, Role role, int rank) const {
  return layout(unit).shard(rank).begin * width(unit, role);
}

std::size_t ShardStore::shard_bytes(std::size_t unit, Role role) const {
  return layout(unit).shard_numel() * width(unit, role);
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

Range ShardStore::stepped_range(std::size_t unit) const {
  return layout(unit).unit().trainable ? held_range(unit, Role::master) : Range{};
}

std::vector<int> ShardStore::stepped_shards() const {
  if (stage_.shards_states()) return {rank_};
  std::vector<int> ranks(static_cast<std::size_t>(world_size_));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

std::span<float> ShardStore::held_part(std::size_t unit, Role role, Range range) const {
  const Range held = held_range(unit, role);
  const Range part = intersect(held, range);
  return part.empty() ? std::span<float>{} : block(unit, role).subspan(part.begin - held.begin, part.size());
}

std::span<std::byte> ShardStore::held_bytes(std::size_t unit, Role role, Range range) const {
  const Range held = held_range(unit, role);
  const Range part = intersect(held, range);
  const std::size_t element = width(unit, role);
  return part.empty() ? std::span<std::byte>{}
                      : bytes_of(unit, role).subspan((part.begin - held.begin) * element, part.size() * element);
}

std::span<float> ShardStore::scales(std::size_t unit, Role role) const { return at(unit, role).scales; }

std::span<float> ShardStore::scales(std::size_t unit, Role role, const Segment& segment) const {
  const std::size_t begin = segment.range.begin - held_range(unit, role).begin;
  const std::size_t first = scale_slot(begin, segment.param, layout(unit).shard_numel());
  return scales(unit, role).subspan(first, block_count(segment.range.size()));
}

std::span<const std::byte> ShardStore::peer(std::size_t unit, Role role, int owner) const {
  const Block& block = at(unit, role);
  const std::span<const std::byte> held(block.peers.part(owner), block.bytes);
  return extent(role) == Extent::shard ? held : held.subspan(start_of(unit, role, owner), shard_bytes(unit, role));
}

const std::byte* ShardStore::mapped(std::size_t unit) const { return at(unit, Role::param).peers.whole(); }

std::map<std::string_view, std::size_t> ShardStore::bytes() const {
  std::map<std::string_view, std::size_t> sum;
  for (const auto& roles : blocks_) {
    for (Role role : all_roles) {
      const Block& block = roles[static_cast<std::size_t>(role)];
      sum[name_of(role)] += block.bytes + block.scales.size_bytes();
    }
  }
  return sum;
}

}  // namespace aliquot
