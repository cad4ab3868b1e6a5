/// \file
/// The host threads that kernels share.
#pragma once

#include <cstddef>
#include <functional>

namespace aliquot {

/// Threads that parallel_for uses in this process, the caller among them. At start: OMP_NUM_THREADS if it is set
/// (torchrun sets it), else the cores of the affinity mask.
int thread_count() noexcept;
/// \throws InvalidArgument if count < 1
void set_thread_count(int count);

/// Calls body(begin, end) for pieces that cover [0, count), each but the last `grain` long (a piece is never cut
/// differently for another number of threads). Returns when all are done; the first exception is rethrown.
void parallel_for(std::size_t count, std::size_t grain, const std::function<void(std::size_t, std::size_t)>& body);

}  // namespace aliquot
