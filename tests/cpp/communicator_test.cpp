#include "aliquot/communicator.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <random>
#include <set>
#include <thread>

#include "aliquot/error.h"
#include "aliquot/transports.h"
#include "ranks.h"

namespace aliquot {
namespace {

using namespace testing;  // NOLINT(google-build-using-namespace)

using Floats = std::vector<float>;

// Magnitudes far apart, so that another order of addition gives other bits.
Floats values(int rank, std::size_t count) {
  std::mt19937 random(static_cast<unsigned>(rank) + 17u);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> exponent(-12, 12);
  Floats made(count);
  for (float& value : made) value = std::ldexp(normal(random), exponent(random));
  return made;
}

Floats sum_in_rank_order(int world_size, std::size_t count) {
  Floats sum = values(0, count);
  for (int r = 1; r < world_size; ++r) {
    const Floats addends = values(r, count);
    for (std::size_t i = 0; i < count; ++i) sum[i] += addends[i];
  }
  return sum;
}

std::span<std::byte> bytes_of(Floats& floats) { return std::as_writable_bytes(std::span(floats)); }

void require_same_bits(std::span<const float> got, std::span<const float> expected, const std::string& what) {
  require(got.size() == expected.size() &&
              (got.empty() || std::memcmp(got.data(), expected.data(), got.size_bytes()) == 0),
          what + " gives other bits than the serial reference");
}

void check_all_gather(Communicator& communicator, std::size_t count) {
  const auto world_size = static_cast<std::size_t>(communicator.world_size());
  Floats part = values(communicator.rank(), count);
  Floats expected;
  for (int r = 0; r < communicator.world_size(); ++r) {
    const Floats theirs = values(r, count);
    expected.insert(expected.end(), theirs.begin(), theirs.end());
  }
  Floats whole(world_size * count);
  communicator.all_gather({"gather", "unit"}, bytes_of(part), bytes_of(whole).data());
  require_same_bits(whole, expected, "all_gather");

  Floats in_place(world_size * count);
  const auto mine = std::span(in_place).subspan(static_cast<std::size_t>(communicator.rank()) * count, count);
  std::copy(part.begin(), part.end(), mine.begin());
  communicator.all_gather({"gather", "unit"}, std::as_bytes(mine), bytes_of(in_place).data());
  require_same_bits(in_place, expected, "all_gather in place");
}

void check_reduce_scatter(Communicator& communicator, std::size_t count) {
  const std::size_t whole_count = static_cast<std::size_t>(communicator.world_size()) * count;
  const Floats whole = values(communicator.rank(), whole_count);
  Floats part(count);
  communicator.reduce_scatter({"reduce", "unit"}, whole.data(), part);
  const Floats sum = sum_in_rank_order(communicator.world_size(), whole_count);
  require_same_bits(part, std::span(sum).subspan(static_cast<std::size_t>(communicator.rank()) * count, count),
                    "reduce_scatter");
}

void check_all_reduce(Communicator& communicator, std::size_t count) {
  Floats data = values(communicator.rank(), count);
  communicator.all_reduce({"norm", ""}, data);
  require_same_bits(data, sum_in_rank_order(communicator.world_size(), count), "all_reduce");
}

void check_broadcast(Communicator& communicator, std::size_t count) {
  for (int root = 0; root < communicator.world_size(); ++root) {
    Floats data = values(communicator.rank(), count);
    communicator.broadcast({"load", "unit"}, bytes_of(data), root);
    require_same_bits(data, values(root, count), "broadcast");
  }
}

void check_all_to_all(Communicator& communicator, std::size_t count) {
  const auto world_size = static_cast<std::size_t>(communicator.world_size());
  Floats input = values(communicator.rank(), world_size * count);
  Floats output(world_size * count);
  communicator.all_to_all({"exchange", ""}, bytes_of(input).data(), bytes_of(output).data(), count * sizeof(float));
  for (int r = 0; r < communicator.world_size(); ++r) {
    const Floats theirs = values(r, world_size * count);
    require_same_bits(std::span(output).subspan(static_cast<std::size_t>(r) * count, count),
                      std::span(theirs).subspan(static_cast<std::size_t>(communicator.rank()) * count, count),
                      "all_to_all");
  }
}

// Around the ring, the even ranks first: a send waits for its partner.
void check_send_receive(Communicator& communicator, std::size_t count) {
  const int world_size = communicator.world_size();
  if (world_size == 1) return;
  const int from = (communicator.rank() + world_size - 1) % world_size;
  Floats mine = values(communicator.rank(), count);
  Floats theirs(count);
  const auto send = [&] { communicator.send({"pass", ""}, bytes_of(mine), (communicator.rank() + 1) % world_size); };
  if (communicator.rank() % 2 == 0) send();
  communicator.receive({"pass", ""}, bytes_of(theirs), from);
  if (communicator.rank() % 2 == 1) send();
  require_same_bits(theirs, values(from, count), "send and receive");
}

void check_every_collective(Communicator& communicator) {
  // None, one, odd, and more than the transports stage at once.
  for (const std::size_t count : {0u, 1u, 17u, 1021u, 150'001u}) {
    check_all_gather(communicator, count);
    check_reduce_scatter(communicator, count);
    check_all_reduce(communicator, count);
    check_broadcast(communicator, count);
    check_all_to_all(communicator, count);
    check_send_receive(communicator, count);
    communicator.barrier({"end", ""});
  }
}

void check_one_sided(Communicator& communicator) {
  const auto rank = static_cast<std::uint32_t>(communicator.rank());
  constexpr std::size_t count = 1000;
  require(communicator.one_sided(), "the transport should be one-sided");
  const PeerMemory memory = communicator.share(64 + count * sizeof(std::uint32_t));
  const auto signal = [&](int r) -> Signal& { return *reinterpret_cast<Signal*>(memory.part(r)); };
  const auto numbers = [&](int r) { return reinterpret_cast<std::uint32_t*>(memory.part(r) + 64); };
  require(std::all_of(numbers(communicator.rank()), numbers(communicator.rank()) + count,
                      [](std::uint32_t number) { return number == 0; }),
          "shared memory should begin as zeros");
  for (std::uint32_t epoch = 1; epoch <= 20; ++epoch) {
    std::iota(numbers(communicator.rank()), numbers(communicator.rank()) + count, 1000 * rank + epoch);
    communicator.post(signal(communicator.rank()), epoch);
    for (int r = communicator.world_size() - 1; r >= 0; --r) {
      communicator.wait_until([&] { return reached(signal(r), epoch); }, "an epoch");
      require(numbers(r)[count - 1] == 1000 * static_cast<std::uint32_t>(r) + epoch + count - 1, "a stale read");
    }
    communicator.barrier({"read", ""});
  }
}

enum class Ranks { threads, processes };

std::vector<Outcome> run(Ranks ranks, int world_size, const RankBody& body,
                         std::chrono::milliseconds timeout = patience) {
  return ranks == Ranks::threads ? run_threads(world_size, body, timeout) : run_processes(world_size, body, timeout);
}

void expect_success(const std::vector<Outcome>& outcomes) {
  for (std::size_t r = 0; r < outcomes.size(); ++r) {
    EXPECT_EQ(outcomes[r].message, "") << "rank " << r;
    EXPECT_EQ(outcomes[r].signal, 0) << "rank " << r;
  }
}

void expect_each_says(const std::vector<Outcome>& outcomes, const std::vector<std::string>& parts) {
  for (std::size_t r = 0; r < outcomes.size(); ++r) {
    for (const std::string& part : parts) {
      EXPECT_NE(outcomes[r].message.find(part), std::string::npos) << "rank " << r << ": " << outcomes[r].message;
    }
  }
}

// The message of the `Kind` that `call` throws.
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

class Worlds : public ::testing::TestWithParam<std::tuple<Ranks, int>> {
 protected:
  Ranks ranks() const { return std::get<0>(GetParam()); }
  int world_size() const { return std::get<1>(GetParam()); }
};

TEST_P(Worlds, EveryCollectiveEqualsItsSerialReference) {
  expect_success(run(ranks(), world_size(), check_every_collective));
}

TEST_P(Worlds, OneSidedReadsSeeWhatWasPosted) { expect_success(run(ranks(), world_size(), check_one_sided)); }

std::string name_of(const ::testing::TestParamInfo<std::tuple<Ranks, int>>& info) {
  const std::string ranks = std::get<0>(info.param) == Ranks::threads ? "threads" : "processes";
  return std::to_string(std::get<1>(info.param)) + "_" + ranks;
}

INSTANTIATE_TEST_SUITE_P(Communicator, Worlds,
                         ::testing::Combine(::testing::Values(Ranks::threads, Ranks::processes),
                                            ::testing::Range(1, 5)),
                         name_of);

class Transports : public ::testing::TestWithParam<Ranks> {};

TEST_P(Transports, RanksInDifferentUnitsLearnBothUnits) {
  const auto outcomes = run(GetParam(), 3, [](Communicator& communicator) {
    Floats part(8), whole(24);
    const char* unit = communicator.rank() == 2 ? "blocks.7" : "blocks.3";
    rethrow_as_text<CommunicatorError>(
        [&] { communicator.all_gather({"gather", unit}, bytes_of(part), bytes_of(whole).data()); });
  });
  expect_each_says(outcomes, {"rank 0", "\"gather\" of unit \"blocks.3\"", "rank 2", "\"gather\" of unit \"blocks.7\""});
}

TEST_P(Transports, RanksInDifferentCollectivesLearnBothAndMayGoOn) {
  const auto outcomes = run(GetParam(), 2, [](Communicator& communicator) {
    Floats data(8), part(4);
    const std::string message = error_of<CommunicatorError>([&] {
      if (communicator.rank() == 0) communicator.all_reduce({"norm", ""}, data);
      if (communicator.rank() == 1) communicator.reduce_scatter({"reduce", "head"}, data.data(), part);
    });
    check_all_reduce(communicator, 100);
    throw std::runtime_error(message);
  });
  expect_each_says(outcomes, {"rank 0 calls all_reduce \"norm\"", "rank 1 calls reduce_scatter \"reduce\" of unit \"head\""});
}

TEST_P(Transports, DifferentSizesAreAnErrorOnBothSides) {
  const auto outcomes = run(GetParam(), 2, [](Communicator& communicator) {
    std::vector<std::byte> data(communicator.rank() == 0 ? 8 : 12);
    rethrow_as_text<CommunicatorError>([&] {
      if (communicator.rank() == 0) communicator.send({"activations", ""}, data, 1);
      if (communicator.rank() == 1) communicator.receive({"activations", ""}, data, 0);
    });
  });
  expect_each_says(outcomes, {"size 8", "size 12"});
}

TEST_P(Transports, TwoSendersLearnOfEachOtherAtOnce) {
  const auto outcomes = run(GetParam(), 2, [](Communicator& communicator) {
    std::vector<std::byte> data(8);
    rethrow_as_text<CommunicatorError>([&] { communicator.send({"pass", ""}, data, 1 - communicator.rank()); });
  });
  expect_each_says(outcomes, {"from rank 0", "from rank 1"});
}

TEST_P(Transports, SharesOfDifferentSizesAreAnError) {
  const auto outcomes = run(GetParam(), 2, [](Communicator& communicator) {
    rethrow_as_text<CommunicatorError>([&] { communicator.share(communicator.rank() == 0 ? 4096 : 8192); });
  });
  expect_each_says(outcomes, {"size 4096", "size 8192"});
}

TEST_P(Transports, SharedMemoryOutlivesItsCommunicator) {
  expect_success(run_processes(2, [](const KeyValueStore& store, int rank) {
    PeerMemory memory;
    {
      const auto communicator = make_shared_memory_communicator(store, "brief", rank, 2, patience);
      memory = communicator->share(1 << 20);
      memory.part(rank)[7] = std::byte{9};
      communicator->barrier({"written", ""});
    }
    require(memory.part(0)[7] == std::byte{9} && memory.part(1)[7] == std::byte{9}, "the memory is gone");
  }));
}

TEST_P(Transports, ADeadlineNamesWhoHasNotArrived) {
  const auto outcomes = run(
      GetParam(), 3,
      [](Communicator& communicator) {
        rethrow_as_text<CommunicatorError>([&] {
          if (communicator.rank() != 1) communicator.barrier({"step", ""});
          if (communicator.rank() == 1) communicator.wait_until([] { return false; }, "nothing");
        });
      },
      std::chrono::milliseconds(400));
  expect_each_says(outcomes, {"waited for", "400 ms"});
  EXPECT_TRUE(outcomes[0].message.find("not arrived: rank 1") != std::string::npos ||
              outcomes[0].message.find("rank 1 waited for nothing") != std::string::npos)
      << outcomes[0].message;
}

TEST_P(Transports, AnAbortReachesPresentAndLaterWaits) {
  const auto outcomes = run(GetParam(), 3, [](Communicator& communicator) {
    if (communicator.rank() == 2) communicator.abort("the disk is full");
    const auto wait = [&] { communicator.barrier({"step", ""}); };
    const std::string message = error_of<CommunicatorError>(wait);
    require(error_of<CommunicatorError>(wait) == message, "a later wait should fail alike");
    throw std::runtime_error(message);
  });
  expect_each_says(outcomes, {"rank 2 aborted: the disk is full"});
}

TEST_P(Transports, AnAbortComesFromAnyThread) {
  const auto outcomes = run(GetParam(), 2, [](Communicator& communicator) {
    if (communicator.rank() == 0) std::jthread([&] { communicator.abort("by another thread"); }).join();
    rethrow_as_text<CommunicatorError>([&] { communicator.wait_until([] { return false; }, "nothing"); });
  });
  expect_each_says(outcomes, {"rank 0 aborted: by another thread"});
}

TEST_P(Transports, WhoLeavesEarlyIsNamed) {
  const auto outcomes = run(GetParam(), 2, [](Communicator& communicator) {
    if (communicator.rank() == 0) {
      try {
        communicator.barrier({"step", ""});
      } catch (const PeerLost& lost) {
        require(lost.rank() == 1, "the rank should be 1");
        throw;
      }
    }
  });
  expect_each_says({outcomes[0]}, {"rank 1", "has left", "rank 0 waited for barrier \"step\""});
}

// Rank 0 leaves first, rank 1 when it has posted; rank 2's wait for rank 1 must not mind rank 0.
TEST_P(Transports, ALeaveInGoodOrderIsNoError) {
  expect_success(run(GetParam(), 3, [](Communicator& communicator) {
    const PeerMemory memory = communicator.share(64);
    const auto signal = [&](int r) -> Signal& { return *reinterpret_cast<Signal*>(memory.part(r)); };
    communicator.post(signal(communicator.rank()), 1);
    if (communicator.rank() == 0) return;
    communicator.wait_until([&] { return reached(signal(0), 1); }, "rank 0");
    communicator.post(signal(communicator.rank()), 2);
    if (communicator.rank() == 1) return;
    communicator.wait_until([&] { return reached(signal(1), 2) && reached(signal(0), 1); }, "ranks 0 and 1");
  }));
}

TEST_P(Transports, RefusesRanksOutsideTheWorld) {
  expect_success(run(GetParam(), 2, [](Communicator& communicator) {
    std::vector<std::byte> data(8);
    error_of<InvalidArgument>([&] { communicator.broadcast({"load", ""}, data, 2); });
    error_of<InvalidArgument>([&] { communicator.send({"pass", ""}, data, -1); });
    error_of<InvalidArgument>([&] { communicator.receive({"pass", ""}, data, communicator.rank()); });
    error_of<OutOfMemory>([&] { communicator.share(std::size_t(-1)); });
  }));
}

INSTANTIATE_TEST_SUITE_P(Communicator, Transports, ::testing::Values(Ranks::threads, Ranks::processes),
                         [](const auto& with) { return with.param == Ranks::threads ? "threads" : "processes"; });

TEST(SharedMemory, RefusesRanksOfAnotherHost) {
  const auto outcomes = run_processes(2, [](const KeyValueStore& store, int rank) {
    const auto from_elsewhere = [&](const std::string& key) {
      const std::string value = store.get(key);
      return "elsewhere another-boot" + value.substr(value.find(' ', value.find(' ') + 1));
    };
    const KeyValueStore doctored{store.set, from_elsewhere};
    rethrow_as_text<CommunicatorError>([&] { make_shared_memory_communicator(doctored, "far", rank, 2, patience); });
  });
  expect_each_says(outcomes, {"runs on host 'elsewhere'", "process_group"});
}

// As a DataLoader's workers do: they inherit everything, call nothing, and end first.
TEST(SharedMemory, AForkedChildThatEndsIsNotItsRank) {
  expect_success(run_processes(2, [](const KeyValueStore& store, int rank) {
    auto communicator = make_shared_memory_communicator(store, "forking", rank, 2, patience);
    if (rank == 1) {
      const pid_t worker = fork();
      if (worker == 0) {
        communicator.reset();
        _exit(0);
      }
      waitpid(worker, nullptr, 0);
    }
    check_all_reduce(*communicator, 1000);
  }));
}

TEST(SharedMemory, KeepsNoDescriptorOfItsMemory) {
  expect_success(run_processes(2, [](Communicator& communicator) {
    const PeerMemory memory = communicator.share(4096);
    for (const auto& file : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code gone;
      const std::string target = std::filesystem::read_symlink(file, gone).string();
      require(target.find("memfd:aliquot") == std::string::npos, "open: " + target);
    }
  }));
}

TEST(Communicator, AnInterruptEndsAWaitOnEveryRank) {
  set_interrupt_check([] { throw std::runtime_error("Ctrl-C"); });
  const auto outcomes = run_threads(
      2, [](Communicator& communicator) { communicator.wait_until([] { return false; }, "a step"); });
  set_interrupt_check({});
  std::set<std::string> messages{outcomes[0].message, outcomes[1].message};
  EXPECT_TRUE(messages.contains("Ctrl-C"));
}

TEST(Communicator, ReachedCountsAcrossTheWrap) {
  const Signal late = 3;
  EXPECT_TRUE(reached(late, 3));
  EXPECT_TRUE(reached(late, 0xfffffff0u));
  EXPECT_FALSE(reached(late, 4));
}

TEST(Communicator, RefusesAWorldOfNone) { EXPECT_THROW(make_thread_communicators(0), InvalidArgument); }

}  // namespace
}  // namespace aliquot
