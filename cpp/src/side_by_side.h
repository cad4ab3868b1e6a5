/// \file
/// Work that waits for disks and devices, several pieces at a time. (What keeps the cores busy is for parallel_for.)
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>

namespace aliquot {

/// How many workers `count` numbers need: as many as there are `threads`, and at least the caller.
constexpr std::size_t workers_for(std::size_t count, std::size_t threads) {
  return std::max<std::size_t>(1, std::min(count, threads));
}

/// Calls body(number, worker) for each number below `count`, in order, on up to `workers` threads of its own, of which
/// the caller is one; a worker has one number at a time. Behind an exception no further number is begun; when all that
/// were have ended, that of the lowest number is rethrown, so that it is the same one in every run.
/// \param workers  at least 1; a body is told which of them it is on, from 0
void side_by_side(std::size_t count, std::size_t workers, const std::function<void(std::size_t, std::size_t)>& body);

}  // namespace aliquot
