/// \file
/// What tests say about ranks: how they ran, and how they ended.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "ranks.h"

namespace aliquot::test {

enum class Ranks { threads, processes };

inline const char* name_of(Ranks ranks) { return ranks == Ranks::threads ? "threads" : "processes"; }

inline std::vector<Outcome> run(Ranks ranks, int world_size, const RankBody& body,
                                std::chrono::milliseconds timeout = patience) {
  return ranks == Ranks::threads ? run_threads(world_size, body, timeout) : run_processes(world_size, body, timeout);
}

inline void expect_success(const std::vector<Outcome>& outcomes) {
  for (std::size_t r = 0; r < outcomes.size(); ++r) {
    EXPECT_EQ(outcomes[r].message, "") << "rank " << r;
    EXPECT_EQ(outcomes[r].signal, 0) << "rank " << r;
  }
}

inline void expect_each_says(const std::vector<Outcome>& outcomes, const std::vector<std::string>& parts) {
  for (std::size_t r = 0; r < outcomes.size(); ++r) {
    for (const std::string& part : parts) {
      EXPECT_NE(outcomes[r].message.find(part), std::string::npos) << "rank " << r << ": " << outcomes[r].message;
    }
  }
}

/// The message of the `Kind` that `call` throws.
template <typename Kind>
std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Kind& error) {
    return error.what();
  }
  throw std::runtime_error("no error, or another");
}

template <typename Kind>
void rethrow_as_text(const std::function<void()>& call) {
  throw std::runtime_error(error_of<Kind>(call));
}

}  // namespace aliquot::test
