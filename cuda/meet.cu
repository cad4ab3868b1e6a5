#include "cuda/meet.h"

#include <cuda/atomic>

#include <algorithm>

#include "cuda/launch.h"

namespace aliquot::cuda {
namespace {

constexpr unsigned warp = 32;
constexpr unsigned most_threads = 1024;

/// Some tenth of a millisecond: the host's memory lies beyond a slow link.
constexpr unsigned polls_between_looks = 256;

template <typename Word>
__device__ auto shared(Word* word) {
  return ::cuda::atomic_ref<Word, ::cuda::thread_scope_system>(*word);
}

/// Numbers wrap. A peer that has come to the next meeting has been to this one.
__device__ bool has_come(std::uint32_t seen, std::uint32_t number) {
  return static_cast<std::int32_t>(seen - number) >= 0;
}

__device__ void arrive(const Meeting& meeting, const MeetingCounters& mine, int rank) {
  const MeetingCounters theirs{meeting.counters[rank], meeting.world_size};
  const std::uint32_t number = ++*mine.counted(meeting.channel, rank);
  shared(theirs.arrived(meeting.channel, meeting.rank)).store(number, ::cuda::memory_order_release);
}

__device__ void await(const Meeting& meeting, const MeetingCounters& mine, int rank) {
  const std::uint32_t number = *mine.counted(meeting.channel, rank);
  auto arrived = shared(mine.arrived(meeting.channel, rank));
  auto late = shared(meeting.late + rank);
  bool was_late = false;
  for (unsigned polls = 1; !has_come(arrived.load(::cuda::memory_order_acquire), number); ++polls) {
    if (polls % polls_between_looks != 0) continue;
    if (shared(const_cast<std::uint32_t*>(meeting.aborted)).load(::cuda::memory_order_relaxed) != 0) return;
    if (!was_late) late.store(number, ::cuda::memory_order_relaxed);
    was_late = true;
  }
  if (was_late) late.store(0, ::cuda::memory_order_relaxed);
}

/// One block, a thread per rank. All arrive before any waits, also where a thread has several ranks to see to. See
/// docs/design.md, "Meeting peers", for why a release and an acquire are enough.
__global__ void __launch_bounds__(most_threads) meet_kernel(const __grid_constant__ Meeting meeting) {
  const MeetingCounters mine{meeting.counters[meeting.rank], meeting.world_size};
  const int first = meeting.begin + static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x);
  for (int rank = first; rank < meeting.end; rank += step) arrive(meeting, mine, rank);
  for (int rank = first; rank < meeting.end; rank += step) await(meeting, mine, rank);
}

}  // namespace

void meet(const Meeting& meeting, Stream stream) {
  const auto ranks = static_cast<unsigned>(meeting.end - meeting.begin);
  const unsigned threads = std::min((ranks + warp - 1) / warp * warp, most_threads);
  meet_kernel<<<1, threads, 0, native(stream)>>>(meeting);
  check(cudaGetLastError(), "launch a meeting");
}

}  // namespace aliquot::cuda
