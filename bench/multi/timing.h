/// \file
/// How the programs of this folder time what several ranks do together, and how they end.
#pragma once

#include <algorithm>
#include <chrono>
#include <iostream>
#include <span>
#include <vector>

#include "aliquot/communicator.h"
#include "tests/cpp/ranks.h"

namespace aliquot::bench {

/// The slowest rank's time.
template <typename Body>
double timed(Communicator& communicator, const Body& body) {
  communicator.barrier({"start", ""});
  const auto begin = std::chrono::steady_clock::now();
  body();
  const double mine = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::vector<double> all(static_cast<std::size_t>(communicator.world_size()));
  communicator.all_gather({"time", ""}, std::as_bytes(std::span(&mine, 1)),
                          std::as_writable_bytes(std::span(all)).data());
  return *std::max_element(all.begin(), all.end());
}

inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Prints what went wrong; 0 if nothing did.
inline int exit_status(const std::vector<test::Outcome>& outcomes) {
  for (const test::Outcome& outcome : outcomes) {
    if (!outcome.message.empty()) std::cerr << outcome.message << '\n';
  }
  return std::ranges::all_of(outcomes, [](const auto& o) { return o.message.empty() && o.signal == 0; }) ? 0 : 1;
}

}  // namespace aliquot::bench
