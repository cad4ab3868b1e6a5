/// \file
/// The worlds that the core is tested in: every kind of transport, with ranks as threads or as processes.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "outcomes.h"
#include "two_sided.h"

namespace aliquot::test {

enum class Transport { one_sided_threads, two_sided_threads, processes };

inline std::string name_of(Transport transport) {
  switch (transport) {
    case Transport::one_sided_threads: return "one_sided_threads";
    case Transport::two_sided_threads: return "two_sided_threads";
    case Transport::processes: return "processes";
  }
  return "";
}

/// For INSTANTIATE_TEST_SUITE_P, and what the cases are called.
inline auto every_transport_and_stage() {
  return ::testing::Combine(
      ::testing::Values(Transport::one_sided_threads, Transport::two_sided_threads, Transport::processes),
      ::testing::Range(0, 4));
}

inline std::string name_of_case(const ::testing::TestParamInfo<std::tuple<Transport, int>>& with) {
  return name_of(std::get<0>(with.param)) + "_stage_" + std::to_string(std::get<1>(with.param));
}

/// Runs every rank's body and expects that it returns. Bodies assert with `require`, which reaches the parent of a
/// forked rank too.
inline void run_world(Transport transport, int world_size, const RankBody& body) {
  const RankBody with_one_side_hidden = [&](Communicator& inner) {
    TwoSided communicator(inner);
    body(communicator);
  };
  const Ranks ranks = transport == Transport::processes ? Ranks::processes : Ranks::threads;
  expect_success(run(ranks, world_size, transport == Transport::two_sided_threads ? with_one_side_hidden : body));
}

}  // namespace aliquot::test
