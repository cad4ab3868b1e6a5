#include "aliquot/gatherer.h"

#include <algorithm>
#include <string>

#include "aliquot/kernels.h"
#include "channels.h"
#include "stopwatch.h"

namespace aliquot {
namespace {

std::vector<const Layout*> layouts_of(const ShardStore& store) {
  std::vector<const Layout*> layouts;
  for (std::size_t unit = 0; unit < store.unit_count(); ++unit) layouts.push_back(&store.layout(unit));
  return layouts;
}

std::vector<std::size_t> bytes_of(const ShardStore& store) {
  std::vector<std::size_t> bytes;
  for (std::size_t unit = 0; unit < store.unit_count(); ++unit) bytes.push_back(store.layout(unit).bytes());
  return bytes;
}

/// Bytes as copy() takes them: shards are whole words in every dtype (Layout::alignment).
std::span<const float> as_words(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const float*>(bytes.data()), bytes.size() / sizeof(float)};
}

Signal& version_of(const PeerMemory& control, int rank) { return *reinterpret_cast<Signal*>(control.part(rank)); }

}  // namespace

Gatherer::Gatherer(ShardStore& store, Communicator& communicator, MemoryResource& memory, GathererOptions options)
    : store_(store), communicator_(communicator), options_(options), slots_(layouts_of(store), options.slots, memory),
      stream_(memory.device(), Priority::high), published_(memory.device()), read_(memory.device()),
      followed_(memory.device()), forward_(bytes_of(store), options.ahead_bytes),
      backward_(bytes_of(store), options.ahead_bytes) {
  if (!communicator.one_sided() || options_.poison) options_.landing = Landing::slots;
  if (communicator.one_sided()) control_ = communicator.share(64);
}

Gatherer::~Gatherer() { settle(communicator_); }

void Gatherer::profile(Timeline* timeline) {
  timeline_ = timeline;
  settle(communicator_);  // what was launched may still use the one before
}

bool Gatherer::uses_slots() const { return store_.stage().shards_parameters() && options_.landing == Landing::slots; }

const std::byte* Gatherer::resident(std::size_t unit) const {
  if (!store_.stage().shards_parameters()) return store_.bytes_of(unit, Role::param).data();
  return store_.mapped(unit);
}

const std::byte* Gatherer::acquire(std::size_t unit, Pass pass, Slots::Home home, Stream stream) {
  if (!uses_slots()) {
    if (store_.stage().shards_parameters()) {
      const TimedScope timed(timeline_, Activity::gather, Hold::work, store_.layout(unit).unit().name, 0, stream);
      await_version();
    }
    return resident(unit);
  }
  std::byte* slot = slots_.take(unit, home);
  fill(unit, slot);
  await_filled(unit);
  block(slots_.filled_event(unit), stream, timeline_, Activity::gather, store_.layout(unit).unit().name);
  gather_ahead(unit, pass);
  return slot;
}

// docs/design.md, "Hand-overs between streams" and "Launching".
void Gatherer::fill(std::size_t unit, std::byte* slot) {
  if (slots_.holds(unit, version_)) return;
  const Stopwatch stopwatch(statistics_.seconds);
  count(unit);
  const auto launch =
      communicator_.launch([this, unit, slot, timeline = timeline_, &released = slots_.released_event(unit),
                            &filled = slots_.filled_event(unit)] {
        released.block(stream_.get());
        published_.block(stream_.get());
        if (!units_published_.empty()) units_published_[unit].block(stream_.get());
        if (communicator_.maps_peers()) {
          pull(unit, slot, timeline);
        } else {
          move(unit, Role::param, slot, stream_.get(), timeline);
        }
        filled.record(stream_.get());
      });
  if (capturing_) communicator_.await(launch);
  slots_.filled(unit, version_, launch);
}

void Gatherer::await_filled(std::size_t unit) {
  const Stopwatch stopwatch(statistics_.seconds);
  communicator_.await(slots_.filled_by(unit));
}

// A slot is filled for the first unit that needs it; a later one would drive that out unused.
void Gatherer::gather_ahead(std::size_t unit, Pass pass) {
  std::vector<const std::byte*> spoken_for;
  for (const std::size_t next : (pass == Pass::forward ? forward_ : backward_).acquired(unit)) {
    std::byte* slot = slots_.home(next);
    if (slot == nullptr || std::ranges::find(spoken_for, slot) != spoken_for.end()) continue;
    spoken_for.push_back(slot);
    if (slots_.free_for(next)) fill(next, slot);
  }
}

void Gatherer::release(std::size_t unit, Stream stream) {
  if (!uses_slots() || !slots_.live(unit)) return;
  slots_.release(unit);
  if (slots_.live(unit)) return;
  if (options_.poison) slots_.poison(unit, stream);
  slots_.released_event(unit).record(stream);
}

void Gatherer::forget(std::size_t unit) {
  if (uses_slots()) slots_.forget(unit);
}

void Gatherer::hold(std::size_t unit) {
  if (uses_slots()) slots_.take(unit, Slots::Home::fixed);
}

std::optional<std::size_t> Gatherer::in_the_way(std::size_t unit) const {
  return uses_slots() ? slots_.in_the_way(unit) : std::nullopt;
}

void Gatherer::release_all(Stream stream) {
  communicator_.await(Communicator::every_launch);
  slots_.release_all(stream);
  end_pass(Pass::forward);
  end_pass(Pass::backward);
}

void Gatherer::end_pass(Pass pass) { (pass == Pass::forward ? forward_ : backward_).end_pass(); }

void Gatherer::publish(Stream stream) {
  communicator_.await(Communicator::every_launch);
  ++version_;
  published_.record(stream);
  if (communicator_.one_sided()) communicator_.post(version_of(control_, communicator_.rank()), version_);
  if (!communicator_.maps_peers()) return;
  published_.block(stream_.get());
  communicator_.meet({"publish", ""}, gather_channel, stream_.get());
}

// docs/design.md, "The hidden step".
void Gatherer::begin_version(Stream stream) {
  communicator_.await(Communicator::every_launch);
  if (units_published_.empty()) make_unit_events();
  ++version_;
  published_.record(stream);
}

void Gatherer::make_unit_events() {
  units_published_.clear();
  for (std::size_t unit = 0; unit < store_.unit_count(); ++unit) units_published_.emplace_back(stream_.device());
}

void Gatherer::publish_unit(std::size_t unit, Stream stream) {
  if (communicator_.maps_peers())
    communicator_.meet({"publish", store_.layout(unit).unit().name}, step_channel, stream);
  units_published_[unit].record(stream);
}

void Gatherer::finish_reads(Stream stream) {
  if (!communicator_.maps_peers()) return;
  communicator_.await(Communicator::every_launch);
  read_.record(stream_.get());
  read_.block(stream);
}

void Gatherer::finish_reads() {
  if (!communicator_.maps_peers()) return;
  communicator_.await(Communicator::every_launch);
  synchronize(stream_.get());
}

void Gatherer::renew() {
  communicator_.await(Communicator::every_launch);
  synchronize(stream_.get());
  for (Event* event : {&published_, &read_, &followed_}) *event = Event(stream_.device());
  if (!units_published_.empty()) make_unit_events();
  slots_.renew();
}

void Gatherer::follow(Stream stream) {
  followed_.record(stream);
  followed_.block(stream_.get());
}

void Gatherer::await_version() {
  if (seen_version_ == version_) return;
  communicator_.wait_until(
      [this] {
        for (int rank = 0; rank < communicator_.world_size(); ++rank) {
          if (!reached(version_of(control_, rank), version_)) return false;
        }
        return true;
      },
      "every rank's parameters of step " + std::to_string(version_));
  seen_version_ = version_;
}

void Gatherer::fetch(std::size_t unit, Role role, std::byte* whole, Stream stream) {
  const Stopwatch stopwatch(statistics_.seconds);
  count(unit);
  move(unit, role, whole, stream, timeline_);
}

void Gatherer::count(std::size_t unit) {
  const Layout& layout = store_.layout(unit);
  ++statistics_.gathers;
  statistics_.bytes += layout.bytes() - layout.shard_bytes();
}

// No partner takes part: all ranks have met since they published this version. Each begins with its own part and goes
// on with the next rank's, so that they don't all read from one.
void Gatherer::pull(std::size_t unit, std::byte* slot, Timeline* timeline) {
  const Layout& layout = store_.layout(unit);
  const std::span<const std::byte> own = store_.own_bytes(unit, Role::param);
  const std::size_t bytes = layout.bytes() - layout.shard_bytes();
  const TimedScope timed(timeline, Activity::gather, Hold::none, layout.unit().name, bytes, stream_.get());
  const int world = communicator_.world_size();
  for (int step = 0; step < world; ++step) {
    const int owner = (communicator_.rank() + step) % world;
    std::byte* const place = slot + static_cast<std::size_t>(owner) * own.size();
    copy_async(place, communicator_.peer(owner, own.data()), own.size(), stream_.get());
  }
}

void Gatherer::move(std::size_t unit, Role role, std::byte* whole, Stream stream, Timeline* timeline) {
  const Layout& layout = store_.layout(unit);
  const Hold hold = stream.handle == stream_.get().handle ? Hold::none : Hold::work;
  const std::size_t bytes = layout.bytes() - layout.shard_bytes();
  const TimedScope timed(timeline, Activity::gather, hold, layout.unit().name, bytes, stream);
  if (!communicator_.one_sided()) {
    communicator_.all_gather({"gather", layout.unit().name}, store_.own_bytes(unit, role), whole, stream);
    return;
  }
  await_version();
  const int world = communicator_.world_size();
  for (int step = 0; step < world; ++step) {
    const int owner = (communicator_.rank() + step) % world;
    const std::span<const std::byte> shard = store_.peer(unit, role, owner);
    std::byte* destination = whole + static_cast<std::size_t>(owner) * shard.size();
    if (shard.data() != destination) copy(as_words(shard), reinterpret_cast<float*>(destination));
  }
}

}  // namespace aliquot
