#include "device_trust_ratios.h"

#include "to_device.h"

namespace aliquot {
namespace {

std::vector<cuda::Chunk> chunks_of_shard(const ShardStore& store, std::size_t unit, int owner) {
  const Layout& layout = store.layout(unit);
  std::vector<cuda::Chunk> chunks = cuda::chunks_of(layout, layout.shard(owner));
  for (cuda::Chunk& chunk : chunks) chunk.begin += layout.shard(owner).begin - store.stepped_range(unit).begin;
  return chunks;
}

}  // namespace

std::vector<cuda::Chunk> stepped_chunks(const ShardStore& store, std::size_t unit) {
  std::vector<cuda::Chunk> all;
  if (!store.holds(unit, Role::grad)) return all;
  for (const int owner : store.stepped_shards()) {
    const std::vector<cuda::Chunk> chunks = chunks_of_shard(store, unit, owner);
    all.insert(all.end(), chunks.begin(), chunks.end());
  }
  return all;
}

DeviceTrustRatios::DeviceTrustRatios(const ShardStore& store, Communicator& communicator, MemoryResource& memory)
    : sharded_(store.stage().shards_states()), parts_(static_cast<std::size_t>(communicator.world_size())) {
  std::size_t chunk_count = 0;
  for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
    first_param_.push_back(params_);
    first_chunk_.push_back(chunk_count);
    params_ += store.layout(unit).unit().params.size();
    chunk_count += stepped_chunks(store, unit).size();
  }
  const std::vector<int> owners = store.stepped_shards();
  std::vector<cuda::ChunkSpan> spans(owners.size() * params_);
  for (std::size_t unit = 0; unit < store.unit_count(); ++unit) {
    auto next = static_cast<std::uint32_t>(first_chunk_[unit]);
    for (std::size_t part = 0; part < owners.size() && store.holds(unit, Role::grad); ++part) {
      for (const cuda::Chunk& chunk : chunks_of_shard(store, unit, owners[part])) {
        cuda::ChunkSpan& span = spans[part * params_ + first_param_[unit] + chunk.param];
        if (span.count++ == 0) span.first = next;
        ++next;
      }
    }
  }
  chunks_ = Buffer(memory, chunk_count * sizeof(NormSquares));
  spans_ = to_device(spans, memory);
  sums_ = Buffer(memory, parts_ * params_ * sizeof(NormSquares));
  ratios_ = Buffer(memory, params_ * sizeof(float));
}

NormSquares* DeviceTrustRatios::of_chunks(std::size_t unit) const {
  return reinterpret_cast<NormSquares*>(chunks_.data()) + first_chunk_[unit];
}

void DeviceTrustRatios::add_up(Communicator& communicator, Stream stream) {
  const std::size_t part_bytes = params_ * sizeof(NormSquares);
  std::byte* const mine = sums_.data() + (sharded_ ? static_cast<std::size_t>(communicator.rank()) * part_bytes : 0);
  auto* const sums = reinterpret_cast<NormSquares*>(mine);
  cuda::sum_norms(of_chunks(0), reinterpret_cast<const cuda::ChunkSpan*>(spans_.data()),
                  spans_.bytes() / sizeof(cuda::ChunkSpan), sums, stream);
  if (sharded_) communicator.all_gather({"norms of parameters", ""}, {mine, part_bytes}, sums_.data(), stream);
  cuda::trust_ratios(reinterpret_cast<const NormSquares*>(sums_.data()), params_, parts_,
                     reinterpret_cast<float*>(ratios_.data()), stream);
}

const float* DeviceTrustRatios::of(std::size_t unit) const {
  return reinterpret_cast<const float*>(ratios_.data()) + first_param_[unit];
}

}  // namespace aliquot
