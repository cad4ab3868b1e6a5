/// \file
/// Ranks as threads that take themselves to be on several hosts, as many on each.
#pragma once

#include <algorithm>
#include <functional>
#include <iterator>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "outcomes.h"

namespace aliquot::test {

/// What joins one rank with its neighbours, and with those that have its place in other hosts. Its rank in the world:
/// between.rank() * inside.world_size() + inside.rank().
using HostBody = std::function<void(Communicator& inside, Communicator& between)>;
/// The same for one that makes other communicators of them.
using HostMaker = std::function<void(std::unique_ptr<Communicator> inside, std::unique_ptr<Communicator> between)>;

inline std::vector<Outcome> run_hosts(int hosts, int places, const HostMaker& body, std::chrono::milliseconds timeout) {
  std::vector<std::unique_ptr<Communicator>> inside;  // by rank
  for (int host = 0; host < hosts; ++host) {
    std::ranges::move(make_thread_communicators(places, timeout, {.first = host * places}), std::back_inserter(inside));
  }
  std::vector<std::vector<std::unique_ptr<Communicator>>> between;  // by place, then by host
  for (int place = 0; place < places; ++place) {
    between.push_back(make_thread_communicators(hosts, timeout, {.first = place, .stride = places}));
  }
  std::vector<Outcome> outcomes(inside.size());
  std::vector<std::jthread> threads;
  for (std::size_t r = 0; r < outcomes.size(); ++r) {
    auto& counterparts = between[r % between.size()];
    threads.emplace_back([&body, &outcome = outcomes[r], mine = std::move(inside[r]),
                          across = std::move(counterparts[r / between.size()])]() mutable {
      outcome.message = message_of([&] { body(std::move(mine), std::move(across)); });
    });
  }
  threads.clear();
  return outcomes;
}

inline std::vector<Outcome> run_hosts(int hosts, int places, const HostBody& body) {
  const HostMaker with_both = [&](std::unique_ptr<Communicator> inside, std::unique_ptr<Communicator> between) {
    body(*inside, *between);
  };
  return run_hosts(hosts, places, with_both, patience);
}

}  // namespace aliquot::test
