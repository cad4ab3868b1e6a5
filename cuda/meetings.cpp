#include "cuda/meetings.h"

#include <atomic>
#include <string>

#include "aliquot/error.h"
#include "aliquot/streams.h"

namespace aliquot::cuda {
namespace {

/// Of its own cache line, since all streams look at it.
constexpr std::size_t abort_words = 32;

std::uint32_t load(std::uint32_t& word) noexcept { return std::atomic_ref(word).load(std::memory_order_relaxed); }

}  // namespace

Meetings::Meetings(Device device, int rank, int channels, std::vector<std::uint32_t*> counters)
    : rank_(rank), world_size_(static_cast<int>(counters.size())), pinned_(pinned_memory()),
      memory_(device_memory(device)), waits_(static_cast<std::size_t>(channels) * counters.size()) {
  words_ = Buffer(*pinned_, (abort_words + waits_.size()) * sizeof(std::uint32_t));
  table_ = Buffer(*memory_, counters.size() * sizeof counters[0]);
  copy_async(table_.data(), std::as_bytes(std::span(counters)).data(), table_.bytes(), {});
  synchronize(Stream{});
}

std::uint32_t* Meetings::late(int channel) const {
  return reinterpret_cast<std::uint32_t*>(words_.data()) + abort_words + channel * world_size_;
}

void Meetings::meet(int channel, Ranks ranks, Stream stream) {
  cuda::meet({.counters = reinterpret_cast<std::uint32_t* const*>(table_.data()),
              .rank = rank_,
              .world_size = world_size_,
              .channel = channel,
              .begin = ranks.begin,
              .end = ranks.end,
              .late = late(channel),
              .aborted = reinterpret_cast<const std::uint32_t*>(words_.data())},
             stream);
}

void Meetings::abort() noexcept {
  std::atomic_ref(*reinterpret_cast<std::uint32_t*>(words_.data())).store(1, std::memory_order_release);
}

// A number that stays is one wait: a stream that goes on waits for another one next, or says 0.
void Meetings::require_pace(std::chrono::milliseconds timeout, const std::function<std::string(int)>& name_of) {
  const auto now = Clock::now();
  for (std::size_t i = 0; i < waits_.size(); ++i) {
    const std::uint32_t number = load(late(0)[i]);
    if (number != waits_[i].number) waits_[i] = {number, now};
    const int channel = static_cast<int>(i) / world_size_;
    if (number != 0 && now - waits_[i].since > timeout) tell_late(channel, timeout, name_of(channel));
  }
}

void Meetings::tell_late(int channel, std::chrono::milliseconds timeout, const std::string& what) const {
  std::string ranks;
  for (int rank = 0; rank < world_size_; ++rank) {
    if (load(late(channel)[rank]) != 0) ranks += " " + std::to_string(rank);
  }
  throw CommunicatorError("a stream of rank " + std::to_string(rank_) + " waited for its peers in " + what +
                          ", in vain for " + std::to_string(timeout.count()) +
                          " ms (the communicator's timeout); not arrived: rank" + ranks +
                          ". See what the streams there do, and whether every rank replays the same graphs; if they "
                          "are only slow, give a longer timeout");
}

}  // namespace aliquot::cuda
