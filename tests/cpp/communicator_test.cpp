#include "aliquot/communicator.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <set>
#include <thread>

#include "aliquot/error.h"
#include "aliquot/transports.h"
#include "outcomes.h"
#include "two_sided.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

using Floats = std::vector<float>;

std::span<std::byte> bytes_of(Floats& floats) { return std::as_writable_bytes(std::span(floats)); }

void require_sum_of_ones(Communicator& communicator) {
  Floats ones(100, 1.0f);
  communicator.all_reduce({"sum", ""}, ones);
  require(ones == Floats(100, static_cast<float>(communicator.world_size())), "the ranks no longer sum right");
}

class Transports : public ::testing::TestWithParam<Ranks> {};

TEST_P(Transports, RanksInDifferentUnitsLearnBothUnits) {
  const auto outcomes = run(GetParam(), 3, [](Communicator& communicator) {
    Floats part(8), whole(24);
    const char* unit = communicator.rank() == 2 ? "blocks.7" : "blocks.3";
    rethrow_as_text<CommunicatorError>(
        [&] { communicator.all_gather({"gather", unit}, bytes_of(part), bytes_of(whole).data()); });
  });
  expect_each_says(outcomes,
                   {"rank 0", "\"gather\" of unit \"blocks.3\"", "rank 2", "\"gather\" of unit \"blocks.7\""});
}

TEST_P(Transports, RanksInDifferentCollectivesLearnBothAndMayGoOn) {
  const auto outcomes = run(GetParam(), 2, [](Communicator& communicator) {
    Floats data(8), part(4);
    const std::string message = error_of<CommunicatorError>([&] {
      if (communicator.rank() == 0) communicator.all_reduce({"norm", ""}, data);
      if (communicator.rank() == 1) communicator.reduce_scatter({"reduce", "head"}, data.data(), part);
    });
    require_sum_of_ones(communicator);
    throw std::runtime_error(message);
  });
  expect_each_says(outcomes,
                   {"rank 0 calls all_reduce \"norm\"", "rank 1 calls reduce_scatter \"reduce\" of unit \"head\""});
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

Signal& signal_of(const PeerMemory& memory, int rank) { return *reinterpret_cast<Signal*>(memory.part(rank)); }

TEST_P(Transports, RanksThatWaitForEachOtherLearnOfItLongBeforeTheDeadline) {
  const auto outcomes = run(GetParam(), 3, [](Communicator& communicator) {
    const PeerMemory memory = communicator.share(64);
    rethrow_as_text<CommunicatorError>([&] {
      if (communicator.rank() == 1) communicator.barrier({"save", ""});
      communicator.wait_until([&] { return reached(signal_of(memory, 1), 1); }, "gradients");
    });
  });
  expect_each_says(outcomes, {"ranks disagree", "rank 0 waits for gradients, rank 1 waits for barrier \"save\""});
}

TEST_P(Transports, WhoWaitsWithAllOthersForOneThatLeftIsToldOfThatOne) {
  const auto outcomes = run(GetParam(), 3, [](Communicator& communicator) {
    const PeerMemory memory = communicator.share(64);
    if (communicator.rank() == 2) return;
    const int other = communicator.rank() + 1;
    rethrow_as_text<PeerLost>(
        [&] { communicator.wait_until([&] { return reached(signal_of(memory, other), 1); }, "gradients"); });
  });
  expect_each_says({outcomes[0], outcomes[1]}, {"rank 2", "has left"});
}

// The one that computes holds up all others for several looks of theirs.
TEST_P(Transports, ChainsOfWaitsForOneThatComputesAreLeftAlone) {
  expect_success(run(GetParam(), 3, [](Communicator& communicator) {
    const PeerMemory memory = communicator.share(64);
    const int next = communicator.rank() + 1;
    if (next < 3) communicator.wait_until([&] { return reached(signal_of(memory, next), 1); }, "the next rank");
    if (next == 3) std::this_thread::sleep_for(std::chrono::milliseconds(500));
    communicator.post(signal_of(memory, communicator.rank()), 1);
    require_sum_of_ones(communicator);
  }));
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
                         [](const auto& with) { return name_of(with.param); });

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
    require_sum_of_ones(*communicator);
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
  const auto outcomes =
      run_threads(2, [](Communicator& communicator) { communicator.wait_until([] { return false; }, "a step"); });
  set_interrupt_check({});
  std::set<std::string> messages{outcomes[0].message, outcomes[1].message};
  EXPECT_TRUE(messages.contains("Ctrl-C"));
}

TEST(Communicator, SettlingThrowsNeitherWhatWorkThrewNorAnInterrupt) {
  const auto alone = std::move(make_thread_communicators(1).front());
  TwoSided communicator(*alone);
  std::atomic<bool> interrupted = false;
  bool done = false;
  communicator.launch([&] {
    interrupted.wait(false);
    done = true;
  });
  set_interrupt_check([&] {
    interrupted = true;
    interrupted.notify_one();
    throw std::runtime_error("Ctrl-C");
  });
  settle(communicator);
  set_interrupt_check({});
  EXPECT_TRUE(done);
  communicator.launch([] { throw std::runtime_error("the device is gone"); });
  settle(communicator);
  EXPECT_EQ(message_of([&] { communicator.await(Communicator::every_launch); }), "the device is gone");
}

TEST(Communicator, EnlistsThoseWhoShareItAlikeOnEveryRank) {
  expect_success(run_threads(3, [](Communicator& communicator) {
    for (std::size_t expected = 0; expected < 3; ++expected) {
      require(communicator.enlist() == expected, "another number than " + std::to_string(expected));
    }
    TwoSided other(communicator);
    require(other.enlist() == 0, "another communicator counts on");
  }));
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
