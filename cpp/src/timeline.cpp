#include "aliquot/timeline.h"

#include "aliquot/error.h"

namespace aliquot {

std::string_view name_of(Activity activity) noexcept {
  switch (activity) {
    case Activity::gather: return "gather";
    case Activity::pack: return "pack";
    case Activity::reduce: return "reduce";
    case Activity::step: return "step";
  }
  return "";
}

// On a stream of its own the start does not queue behind the model's work: the host's clock can be read beside it.
Timeline::Timeline(Device device) : device_(device), start_(device) {
  const OwnedStream stream(device, Priority::high);
  start_.record(stream.get());
  if (on_device()) synchronize(stream.get());
  origin_ = Clock::now();
}

Timeline::Mark& Timeline::begin(Activity activity, Hold hold, std::string_view name, std::size_t bytes, Stream stream) {
  if (!on_device() && hold == Hold::none) hold = Hold::work;
  Mark& mark = add();
  mark.slice = {activity, hold, std::string(name), bytes, 0, 0};
  mark.begin = TimedEvent(device_);
  mark.end = TimedEvent(device_);
  mark.begin.record(stream);
  return mark;
}

Timeline::Mark& Timeline::add() {
  const std::lock_guard lock(mutex_);
  return marks_.emplace_back();
}

std::vector<Slice> Timeline::slices() const {
  std::vector<Slice> slices;
  const TimedEvent* anchor = &start_;
  double anchored_at = 0;
  for (const Mark& mark : marks_) {
    if (!mark.ended) continue;
    Slice& slice = slices.emplace_back(mark.slice);
    slice.begin = anchored_at + mark.begin.seconds_since(*anchor);
    slice.end = slice.begin + mark.end.seconds_since(mark.begin);
    // Devices tell times as floats, which are exact only near the anchor.
    if (slice.begin - anchored_at > 1) {
      anchor = &mark.begin;
      anchored_at = slice.begin;
    }
  }
  return slices;
}

// An error of the device is met again by whoever gives it work next.
void TimedScope::end() noexcept {
  try {
    mark_->end.record(stream_);
    mark_->ended = true;
  } catch (const Error&) {
    mark_->ended = false;
  }
}

void block(const Event& event, Stream stream, Timeline* timeline, Activity activity, std::string_view name) {
  Timeline* const of_device = timeline != nullptr && timeline->on_device() ? timeline : nullptr;
  const TimedScope waiting(of_device, activity, Hold::wait, name, 0, stream);
  event.block(stream);
}

}  // namespace aliquot
