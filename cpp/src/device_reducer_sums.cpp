#include "aliquot/device_kernels.h"
#include "channels.h"
#include "device_reducer.h"

// How the outboxes of all ranks become sums: what is launched in order, on the reducer's own stream.
namespace aliquot {

// docs/design.md, "Launching".
void DeviceReducer::send(std::size_t unit, Outbox& outbox) {
  const Sum sum{.unit = unit,
                .result = store_.own_bytes(unit, Role::grad).data(),
                .accumulate = units_[unit].empty ? Accumulate::no : Accumulate::yes,
                .timeline = timeline_};
  if (!communicator_.maps_peers()) {
    outbox.launch = communicator_.launch([=, this, &outbox] {
      communicator_.sums_inside() ? reduce_by_scatter(sum, outbox) : reduce_by_exchange(sum, outbox);
    });
    return;
  }
  Outbox& before = outboxes_[(next_outbox_ + 1) % outboxes_.size()];
  before.launch = communicator_.launch([=, this, &outbox, &before] { reduce_from_peers(sum, outbox, before); });
}

void DeviceReducer::reduce_by_exchange(const Sum& sum, Outbox& outbox) {
  const Layout& layout = store_.layout(sum.unit);
  const Stream stream = stream_.get();
  const std::size_t piece = layout.shard_bytes();
  outbox.packed.block(stream);
  const TimedScope timed(sum.timeline, Activity::reduce, Hold::none, layout.unit().name, layout.bytes(), stream);
  if (communicator_.world_size() > 1) {
    communicator_.exchange({operation_, layout.unit().name}, outbox.memory.data(), inbox_.data(), piece, stream);
  }
  std::vector<const void*> parts;
  for (int rank = 0; rank < communicator_.world_size(); ++rank) {
    const Buffer& box = rank == communicator_.rank() ? outbox.memory : inbox_;
    parts.push_back(box.data() + piece * static_cast<std::size_t>(rank));
  }
  add(sum, parts, layout.unit().dtype);
  outbox.sent.record(stream);
}

void DeviceReducer::reduce_by_scatter(const Sum& sum, Outbox& outbox) {
  const Layout& layout = store_.layout(sum.unit);
  const Stream stream = stream_.get();
  outbox.packed.block(stream);
  const TimedScope timed(sum.timeline, Activity::reduce, Hold::none, layout.unit().name, layout.bytes(), stream);
  auto* const sums = reinterpret_cast<float*>(inbox_.data());
  communicator_.reduce_scatter({operation_, layout.unit().name}, reinterpret_cast<const float*>(outbox.memory.data()),
                               {sums, layout.shard_numel()}, stream);
  outbox.sent.record(stream);
  const void* const parts[] = {sums};
  add(sum, parts, DType::fp32);
}

// When the ranks meet, all outboxes of this unit are packed, and those of the unit before have been read.
void DeviceReducer::reduce_from_peers(const Sum& sum, Outbox& outbox, Outbox& before) {
  const Layout& layout = store_.layout(sum.unit);
  const Stream stream = stream_.get();
  outbox.packed.block(stream);
  const TimedScope timed(sum.timeline, Activity::reduce, Hold::none, layout.unit().name, layout.bytes(), stream);
  communicator_.meet({operation_, layout.unit().name}, reduce_channel, stream);
  before.sent.record(stream);
  const auto place = static_cast<std::size_t>(communicator_.rank()) * layout.shard_bytes();
  std::vector<const void*> parts;
  for (int rank = 0; rank < communicator_.world_size(); ++rank) {
    parts.push_back(communicator_.peer(rank, outbox.memory.data() + place));
  }
  add(sum, parts, layout.unit().dtype);
}

void DeviceReducer::add(const Sum& sum, std::span<const void* const> parts, DType dtype) {
  const Layout& layout = store_.layout(sum.unit);
  const float factor = 1.0F / static_cast<float>(communicator_.world_size());
  const auto reduce = communicator_.maps_peers() && parts.size() > 1 ? cuda::pull_and_reduce : cuda::reduce;
  reduce(parts, dtype, factor, sum.result, store_.gradient_dtype(sum.unit), layout.shard_numel(), sum.accumulate,
         statistics_of(sum.unit), workspace_.data(), stream_.get());
}

// docs/design.md, "Replicas". The inbox is free between reductions.
void DeviceReducer::average(std::size_t unit, Communicator& replicas, const Tag& tag) {
  void* const mean = store_.own_bytes(unit, Role::grad).data();
  const DType dtype = store_.gradient_dtype(unit);
  communicator_.launch([=, this, &replicas, operation = std::string(tag.operation), timeline = timeline_] {
    const Layout& layout = store_.layout(unit);
    const std::span<float> sums(reinterpret_cast<float*>(inbox_.data()), layout.shard_numel());
    const Stream stream = stream_.get();
    const TimedScope timed(timeline, Activity::reduce, Hold::none, layout.unit().name, sums.size_bytes(), stream);
    cuda::cast(mean, dtype, sums.data(), DType::fp32, sums.size(), stream);
    replicas.all_reduce({operation, layout.unit().name}, sums, stream);
    const void* const parts[] = {sums.data()};
    cuda::reduce(parts, DType::fp32, 1.0F / static_cast<float>(replicas.world_size()), mean, dtype, sums.size(),
                 Accumulate::no, statistics_of(unit), workspace_.data(), stream);
  });
}

}  // namespace aliquot
