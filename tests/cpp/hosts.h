/// \file
/// Ranks as threads that take themselves to be on several hosts, as many on each.
#pragma once

#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "outcomes.h"

namespace aliquot::test {

/// What joins one rank with its neighbours, and with those that have its place in other hosts. Its rank in the world:
/// between.rank() * inside.world_size() + inside.rank().
using HostBody = std::function<void(Communicator& inside, Communicator& between)>;

inline std::vector<Outcome> run_hosts(int hosts, int places, const HostBody& body,
                                      std::chrono::milliseconds timeout = patience) {
  std::vector<std::pair<std::unique_ptr<Communicator>, std::unique_ptr<Communicator>>> links(
      static_cast<std::size_t>(hosts * places));
  for (int host = 0; host < hosts; ++host) {
    auto inside = make_thread_communicators(places, timeout, {.first = host * places});
    for (int place = 0; place < places; ++place) {
      links[static_cast<std::size_t>(host * places + place)].first = std::move(inside[static_cast<std::size_t>(place)]);
    }
  }
  for (int place = 0; place < places; ++place) {
    auto between = make_thread_communicators(hosts, timeout, {.first = place, .stride = places});
    for (int host = 0; host < hosts; ++host) {
      links[static_cast<std::size_t>(host * places + place)].second =
          std::move(between[static_cast<std::size_t>(host)]);
    }
  }
  std::vector<Outcome> outcomes(links.size());
  std::vector<std::jthread> threads;
  for (std::size_t r = 0; r < outcomes.size(); ++r) {
    threads.emplace_back([&body, &outcome = outcomes[r], mine = std::move(links[r])]() mutable {
      outcome.message = message_of([&] { body(*mine.first, *mine.second); });
      mine = {};
    });
  }
  threads.clear();
  return outcomes;
}

}  // namespace aliquot::test
