#include "aliquot/slots.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "aliquot/error.h"

namespace aliquot {

Slots::Slots(std::vector<const Layout*> layouts, std::size_t ring, MemoryResource& memory)
    : layouts_(std::move(layouts)), memory_(memory), ring_size_(ring), homes_(layouts_.size()) {
  if (ring < 2) throw InvalidArgument("slots is " + std::to_string(ring) + "; neighbouring units need at least 2");
  for (const Layout* layout : layouts_) {
    if (!layout->unit().encloses_units) ring_bytes_ = std::max(ring_bytes_, layout->bytes());
  }
}

std::size_t Slots::new_slot(std::size_t bytes, bool in_ring) {
  Slot& slot = slots_.emplace_back();
  slot.memory = Buffer(memory_, bytes);
  slot.filled = Event(memory_.device());
  slot.released = Event(memory_.device());
  slot.in_ring = in_ring;
  ring_count_ += in_ring ? 1 : 0;
  return slots_.size() - 1;
}

std::size_t Slots::find_home(std::size_t unit) {
  if (layouts_[unit]->unit().encloses_units) return new_slot(layouts_[unit]->bytes(), false);
  if (ring_count_ < ring_size_) return new_slot(ring_bytes_, true);
  for (std::size_t tried = 0; tried < slots_.size(); ++tried) {
    const std::size_t candidate = next_++ % slots_.size();
    if (slots_[candidate].in_ring && !slots_[candidate].tenant) return candidate;
  }
  return new_slot(ring_bytes_, true);
}

std::byte* Slots::take(std::size_t unit, Home home) {
  if (!homes_[unit]) homes_[unit] = find_home(unit);
  if (const auto tenant = in_the_way(unit)) {
    if (home == Home::fixed) refuse(unit, *tenant);
    homes_[unit] = find_home(unit);
  }
  Slot& slot = slots_[*homes_[unit]];
  slot.tenant = unit;
  ++slot.takes;
  return this->home(unit);
}

void Slots::refuse(std::size_t unit, std::size_t tenant) const {
  throw InvalidArgument("unit '" + name(unit) + "' must be gathered again where its forward saw it, but unit '" +
                        name(tenant) +
                        "' is in use there: their backward passes interleave (with create_graph=True all units stay in "
                        "use). Give them room with aliquot.shard(model, slots=" +
                        std::to_string(ring_count_ + 1) + ") or more, or put both into one unit with units=");
}

std::optional<std::size_t> Slots::in_the_way(std::size_t unit) const {
  if (!homes_[unit]) return {};
  const auto tenant = slots_[*homes_[unit]].tenant;
  return tenant == unit ? std::nullopt : tenant;
}

bool Slots::free_for(std::size_t unit) const { return !in_the_way(unit); }

void Slots::release(std::size_t unit) {
  if (!live(unit)) return;
  Slot& slot = slots_[*homes_[unit]];
  if (--slot.takes == 0) slot.tenant.reset();
}

bool Slots::live(std::size_t unit) const { return homes_[unit] && slots_[*homes_[unit]].tenant == unit; }

void Slots::release_all(Stream stream) {
  for (Slot& slot : slots_) {
    slot.tenant.reset();
    slot.takes = 0;
    slot.released.record(stream);
  }
}

std::byte* Slots::home(std::size_t unit) const { return homes_[unit] ? slots_[*homes_[unit]].memory.data() : nullptr; }

bool Slots::holds(std::size_t unit, std::uint32_t epoch) const {
  if (!homes_[unit]) return false;
  const Slot& slot = slots_[*homes_[unit]];
  return slot.content == unit && slot.epoch == epoch;
}

void Slots::filled(std::size_t unit, std::uint32_t epoch, std::uint64_t launch) {
  Slot& slot = slots_[*homes_[unit]];
  slot.content = unit;
  slot.epoch = epoch;
  slot.launch = launch;
}

void Slots::forget(std::size_t unit) { slots_[*homes_[unit]].content.reset(); }

void Slots::forget_all() {
  for (Slot& slot : slots_) slot.content.reset();
}

void Slots::renew() {
  forget_all();
  for (Slot& slot : slots_) {
    slot.filled = Event(memory_.device());
    slot.released = Event(memory_.device());
  }
}

void Slots::poison(std::size_t unit, Stream stream) {
  Slot& slot = slots_[*homes_[unit]];
  if (!slot.in_ring) return;               // nobody overwrites it
  constexpr std::uint8_t nan_byte = 0xFF;  // in fp32, bf16 and fp16
  if (memory_.device().type == Device::Type::cpu) {
    std::memset(slot.memory.data(), nan_byte, slot.memory.bytes());
  } else {
    fill_async(slot.memory.data(), nan_byte, slot.memory.bytes(), stream);
  }
  slot.content.reset();
}

std::size_t Slots::planned_bytes() const {
  std::size_t in_ring = 0;
  std::size_t sum = 0;
  for (const Layout* layout : layouts_) {
    const bool encloses = layout->unit().encloses_units;
    if (encloses) sum += DeviceArena::planned(layout->bytes());
    in_ring += encloses ? 0 : 1;
  }
  return sum + std::min(in_ring, ring_size_) * DeviceArena::planned(ring_bytes_);
}

std::size_t Slots::bytes() const {
  std::size_t sum = 0;
  for (const Slot& slot : slots_) sum += slot.memory.bytes();
  return sum;
}

}  // namespace aliquot
