// The transport peer: meetings, and memory that peers map. With fewer GPUs than ranks, ranks share them.
#include <gtest/gtest.h>

#include <cstddef>
#include <string>
#include <vector>

#include "aliquot/error.h"
#include "captured.h"
#include "cuda/peer_access.h"
#include "gate.h"
#include "gpu_ranks.h"
#include "test_values.h"
#include "tests/cuda/busy.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using namespace std::chrono_literals;

constexpr std::uint64_t busy_cycles = 2'000'000;  // about a millisecond

/// A piece of memory that all ranks map.
struct SharedPiece {
  SharedPiece(GpuRank& rank, std::size_t bytes)
      : memory(rank.communicator.registrable_memory()), buffer(*memory, bytes),
        registration(rank.communicator.register_memory({buffer.data(), buffer.bytes()})) {}

  std::unique_ptr<MemoryResource> memory;
  Buffer buffer;
  std::shared_ptr<void> registration;
};

std::vector<float> floats_at(const float* data, std::size_t count, Stream stream) {
  std::vector<float> values(count);
  copy_async(values.data(), data, count * sizeof(float), stream);
  synchronize(stream);
  return values;
}

class Peer : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device";
  }
  int world_size() const { return GetParam(); }
  void expect_of_all(const GpuBody& body) const {
    expect_success(run_on_gpus(world_size(), body, 20s, GpuTransport::peer));
  }
};
INSTANTIATE_TEST_SUITE_P(Ranks, Peer, testing::Range(1, 5));

TEST_P(Peer, AnAddressOfAPeerHoldsWhatThePeerPutThere) {
  expect_of_all([&](GpuRank& rank) {
    constexpr std::size_t bytes = 3'000'000;
    const SharedPiece piece(rank, bytes), other(rank, 1000);
    const Stream stream = rank.stream.get();
    const int me = rank.communicator.rank();
    const auto mine = bytes_of(me, bytes), mine_too = bytes_of(me + 100, 1000);
    copy_async(piece.buffer.data(), mine.data(), bytes, stream);
    copy_async(other.buffer.data(), mine_too.data(), mine_too.size(), stream);
    synchronize(stream);
    rank.communicator.barrier({"written", ""});
    for (int r = 0; r < world_size(); ++r) {
      std::vector<std::byte> got(bytes - 17), got_too(1000);
      copy_async(got.data(), rank.communicator.peer(r, piece.buffer.data() + 17), got.size(), stream);
      copy_async(got_too.data(), rank.communicator.peer(r, other.buffer.data()), got_too.size(), stream);
      synchronize(stream);
      const auto theirs = bytes_of(r, bytes);
      require(std::equal(got.begin(), got.end(), theirs.begin() + 17), "other bytes of rank " + std::to_string(r));
      require(got_too == bytes_of(r + 100, 1000), "other bytes in the second piece of rank " + std::to_string(r));
    }
    rank.communicator.barrier({"read", ""});
  });
}

TEST_P(Peer, OnlyRegisteredAddressesHaveAPeer) {
  expect_of_all([](GpuRank& rank) {
    const Communicator& communicator = rank.communicator;
    SharedPiece piece(rank, 1000);
    const std::byte* const data = piece.buffer.data();
    require(communicator.peer(communicator.rank(), data + 999) == data + 999, "this rank's own address is another");
    require(communicator.peer(0, data + 1000) == nullptr, "an address behind the memory");
    require(communicator.peer(0, data - 1) == nullptr, "an address before the memory");
    piece.registration.reset();
    require(communicator.peer(0, data) == nullptr, "an address of memory that is registered no more");
    rank.communicator.barrier({"read", ""});
  });
}

TEST_P(Peer, AMeetingWaitsForTheSlowestAndShowsWhatItWrote) {
  expect_of_all([&](GpuRank& rank) {
    constexpr std::size_t count = 100'000;
    constexpr int rounds = 20;
    const SharedPiece piece(rank, count);
    const GpuBytes seen(rank, rounds * count);
    const Stream stream = rank.stream.get();
    for (int round = 0; round < rounds; ++round) {
      const int slow = round % world_size();
      if (rank.communicator.rank() == slow) linger(busy_cycles, stream);
      fill_async(piece.buffer.data(), static_cast<std::uint8_t>(round + 1), count, stream);
      rank.communicator.meet({"written", ""}, 0, stream);
      copy_async(seen.data() + static_cast<std::size_t>(round) * count,
                 rank.communicator.peer(slow, piece.buffer.data()), count, stream);
      rank.communicator.meet({"read", ""}, 0, stream);
    }
    const auto values = seen.values(stream);
    for (std::size_t i = 0; i < values.size(); ++i) {
      require(values[i] == static_cast<std::byte>(i / count + 1), "old bytes in round " + std::to_string(i / count));
    }
  });
}

TEST_P(Peer, AKernelsWritesAreSeenByAPeersKernel) {
  expect_of_all([&](GpuRank& rank) {
    constexpr std::size_t count = 10'000;
    constexpr int rounds = 50;
    const SharedPiece piece(rank, count * sizeof(float));
    auto* const mine = reinterpret_cast<float*>(piece.buffer.data());
    const auto ones = as_bytes(std::vector<float>(count, 1.0F));
    const Stream stream = rank.stream.get();
    const GpuBytes one(rank, ones, stream), sum(rank, count * sizeof(float));
    for (int round = 0; round < rounds; ++round) {
      axpy(1, one.floats(), mine, count, stream);
      rank.communicator.meet({"written", ""}, 1, stream);
      for (int r = 0; r < world_size(); ++r) {
        axpy(1, reinterpret_cast<const float*>(rank.communicator.peer(r, piece.buffer.data())), sum.floats(), count,
             stream);
      }
      rank.communicator.meet({"read", ""}, 1, stream);
    }
    const auto expected = static_cast<float>(world_size() * rounds * (rounds + 1) / 2);
    require(floats_at(sum.floats(), count, stream) == std::vector<float>(count, expected), "another sum");
  });
}

TEST_P(Peer, AGraphWithMeetingsIsRightInEveryReplay) {
  expect_of_all([&](GpuRank& rank) {
    constexpr std::size_t count = 1000;
    constexpr int replays = 100;
    const SharedPiece piece(rank, count * sizeof(float));
    auto* const mine = reinterpret_cast<float*>(piece.buffer.data());
    const auto ones = as_bytes(std::vector<float>(count, 1.0F));
    const Stream stream = rank.stream.get();
    const GpuBytes one(rank, ones, stream), copy(rank, count * sizeof(float)), sum(rank, count * sizeof(float));
    const Captured graph(stream, [&] {
      axpy(1, one.floats(), mine, count, stream);
      rank.communicator.meet({"written", ""}, 0, stream);
      for (int r = 0; r < world_size(); ++r) {
        copy_async(copy.data(), rank.communicator.peer(r, piece.buffer.data()), count * sizeof(float), stream);
        axpy(1, copy.floats(), sum.floats(), count, stream);
      }
      rank.communicator.meet({"read", ""}, 0, stream);
    });
    rank.communicator.barrier({"captured", ""});
    for (int i = 0; i < replays; ++i) {
      if (i % 10 == 0 && rank.communicator.rank() == 0) linger(busy_cycles, stream);
      graph.replay(stream);
    }
    const auto expected = static_cast<float>(world_size() * replays * (replays + 1) / 2);
    require(floats_at(sum.floats(), count, stream) == std::vector<float>(count, expected), "another sum");
  });
}

TEST_P(Peer, CollectivesInAGraphAreRightBetweenOthers) {
  expect_of_all([&](GpuRank& rank) {
    constexpr std::size_t count = 5'000'000;  // pieces of both halves of the staging, and one more
    constexpr int replays = 5;
    const Stream stream = rank.stream.get();
    const auto addends = as_bytes(std::vector<float>(count, 1.0F));
    const GpuBytes in_graph(rank, addends, stream), eager(rank, addends, stream);
    const Captured graph(stream,
                         [&] { rank.communicator.all_reduce({"norm", ""}, {in_graph.floats(), count}, stream); });
    rank.communicator.barrier({"captured", ""});
    float expected = 1;
    for (int i = 0; i < replays; ++i) {
      graph.replay(stream);
      rank.communicator.all_reduce({"norm", ""}, {eager.floats(), count}, stream);
      expected *= static_cast<float>(world_size());
    }
    const std::vector<float> all(count, expected);
    require(floats_at(in_graph.floats(), count, stream) == all, "another sum in the graph");
    require(floats_at(eager.floats(), count, stream) == all, "another sum outside");
  });
}

TEST_P(Peer, RegisteredMemoryIsGatheredFromWhereItLies) {
  expect_of_all([&](GpuRank& rank) {
    constexpr std::size_t count = 1'000'001;
    const auto ranks = static_cast<std::size_t>(world_size()), me = static_cast<std::size_t>(rank.communicator.rank());
    const SharedPiece piece(rank, (ranks + 1) * count);
    std::byte* const part = piece.buffer.data() + ranks * count;
    const Stream stream = rank.stream.get();
    const auto mine = bytes_of(rank.communicator.rank(), count);
    copy_async(part, mine.data(), count, stream);
    rank.communicator.all_gather({"gather", "unit"}, {part, count}, piece.buffer.data(), stream);
    fill_async(part, 0, count, stream);  // behind what peers read
    std::vector<std::byte> expected(ranks * count), got(ranks * count);
    rank.communicator.host().all_gather({"gather", "unit"}, mine, expected.data());
    copy_async(got.data(), piece.buffer.data(), got.size(), stream);
    synchronize(stream);
    require(got == expected, "other bytes");

    fill_async(piece.buffer.data(), 0, ranks * count, stream);
    copy_async(piece.buffer.data() + me * count, mine.data(), count, stream);
    rank.communicator.all_gather({"gather", "unit"}, {piece.buffer.data() + me * count, count}, piece.buffer.data(),
                                 stream);
    copy_async(got.data(), piece.buffer.data(), got.size(), stream);
    synchronize(stream);
    require(got == expected, "other bytes in place");
    rank.communicator.barrier({"read", ""});
  });
}

TEST_P(Peer, SumsAreThoseOfTheHostForAnyNumberOfRanks) {
  expect_of_all([&](GpuRank& rank) {
    constexpr std::size_t count = 700'001;
    const auto ranks = static_cast<std::size_t>(world_size());
    const auto whole = floats_of(rank.communicator.rank(), ranks * count);
    const Stream stream = rank.stream.get();
    const GpuBytes from(rank, as_bytes(whole), stream), part(rank, count * sizeof(float));
    rank.communicator.reduce_scatter({"reduce", "unit"}, from.floats(), {part.floats(), count}, stream);
    rank.communicator.all_reduce({"norm", ""}, {from.floats(), ranks * count}, stream);
    std::vector<float> expected_part(count), expected = whole;
    rank.communicator.host().reduce_scatter({"reduce", "unit"}, whole.data(), expected_part);
    rank.communicator.host().all_reduce({"norm", ""}, expected);
    require(part.values(stream) == as_bytes(expected_part), "other bits of a part");
    require(from.values(stream) == as_bytes(expected), "other bits of the whole");
  });
}

TEST_P(Peer, EveryPairHandsOver) {
  expect_of_all([&](GpuRank& rank) {
    constexpr std::size_t count = 9'000'001;
    const Stream stream = rank.stream.get();
    const int me = rank.communicator.rank();
    const GpuBytes mine(rank, bytes_of(me, count), stream), theirs(rank, count);
    for (int from = 0; from < world_size(); ++from) {
      for (int to = 0; to < world_size(); ++to) {
        if (from == to) continue;
        if (me == from) rank.communicator.send({"hand over", ""}, mine.span(), to, stream);
        if (me != to) continue;
        rank.communicator.receive({"hand over", ""}, theirs.span(), from, stream);
        require(theirs.values(stream) == bytes_of(from, count), "other bytes of rank " + std::to_string(from));
      }
    }
  });
}

TEST_P(Peer, ChannelsDontWaitForEachOther) {
  expect_of_all([](GpuRank& rank) {
    Gate gate(rank.stream.get());
    rank.communicator.meet({"held up", ""}, 0, rank.stream.get());
    rank.communicator.meet({"free", ""}, 1, rank.other_stream.get());
    synchronize(rank.other_stream.get());
    rank.communicator.barrier({"met", ""});
    gate.open();
    synchronize(rank.stream.get());
  });
}

// Engines of one process meet on a channel in turn, each on a stream of its own.
TEST_P(Peer, AMeetingComesBehindTheLastOneOfItsChannelOnAnotherStream) {
  expect_of_all([&](GpuRank& rank) {
    constexpr std::size_t count = 1000;
    constexpr int rounds = 20;
    const SharedPiece piece(rank, rounds * count);
    const GpuBytes seen(rank, rounds * count);
    for (int round = 0; round < rounds; ++round) {
      const Stream stream = (round % 2 == 0 ? rank.stream : rank.other_stream).get();
      const int slow = round / 2 % world_size();
      const std::size_t place = static_cast<std::size_t>(round) * count;
      if (rank.communicator.rank() == slow && round % 2 == 0) linger(busy_cycles, stream);
      fill_async(piece.buffer.data() + place, static_cast<std::uint8_t>(round + 1), count, stream);
      rank.communicator.meet({"written", ""}, 0, stream);
      copy_async(seen.data() + place, rank.communicator.peer(slow, piece.buffer.data()) + place, count, stream);
    }
    synchronize(rank.other_stream.get());
    const auto values = seen.values(rank.stream.get());
    for (std::size_t i = 0; i < values.size(); ++i) {
      require(values[i] == static_cast<std::byte>(i / count + 1), "too early in round " + std::to_string(i / count));
    }
    rank.communicator.barrier({"read", ""});
  });
}

TEST_P(Peer, OtherMemoryIsRefusedOnEveryRank) {
  const auto outcomes = run_on_gpus(
      world_size(),
      [&](GpuRank& rank) {
        const auto memory = rank.communicator.registrable_memory();
        const Buffer good(*memory, 1000);
        const GpuBytes plain(rank, 1000);
        const bool last = rank.communicator.rank() == world_size() - 1;
        const std::span<std::byte> span = last ? plain.span() : std::span(good.data(), good.bytes());
        rethrow_as_text<InvalidArgument>([&] { static_cast<void>(rank.communicator.register_memory(span)); });
      },
      20s, GpuTransport::peer);
  expect_each_says(outcomes, {"rank " + std::to_string(world_size() - 1), "registrable_memory()"});
}

TEST_P(Peer, APartOfAPieceIsRefused) {
  const auto outcomes = run_on_gpus(
      world_size(),
      [](GpuRank& rank) {
        const auto memory = rank.communicator.registrable_memory();
        const Buffer piece(*memory, 1000);
        rethrow_as_text<InvalidArgument>(
            [&] { static_cast<void>(rank.communicator.register_memory({piece.data(), 999})); });
      },
      20s, GpuTransport::peer);
  expect_each_says(outcomes, {"rank 0", "whole pieces"});
}

class TwoPeers : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device";
  }
  static std::vector<Outcome> run(const GpuBody& body) { return run_on_gpus(2, body, 20s, GpuTransport::peer); }
};

TEST_F(TwoPeers, DifferentSizesAreRefused) {
  const auto outcomes = run([](GpuRank& rank) {
    const auto memory = rank.communicator.registrable_memory();
    const Buffer piece(*memory, rank.communicator.rank() == 0 ? 1000 : 2000);
    rethrow_as_text<InvalidArgument>(
        [&] { static_cast<void>(rank.communicator.register_memory({piece.data(), piece.bytes()})); });
  });
  expect_each_says(outcomes, {"rank 1 gave 2000 bytes, rank 0 1000"});
}

TEST_F(TwoPeers, AChannelThatIsNotThereIsRefused) {
  expect_success(run([](GpuRank& rank) {
    for (const int channel : {-1, Communicator::meeting_channels}) {
      const std::string message =
          error_of<InvalidArgument>([&] { rank.communicator.meet({"meet", ""}, channel, rank.stream.get()); });
      require(message.find("channels count from 0 to 7") != std::string::npos, message);
    }
  }));
}

TEST_F(TwoPeers, MemoryOutlivesItsOwnerWhileAPeerMapsIt) {
  expect_success(run([](GpuRank& rank) {
    auto piece = std::make_unique<SharedPiece>(rank, 1000);
    const Stream stream = rank.stream.get();
    fill_async(piece->buffer.data(), 7, 1000, stream);
    synchronize(stream);
    rank.communicator.barrier({"written", ""});
    if (rank.communicator.rank() == 1) piece.reset();
    rank.communicator.barrier({"given back", ""});
    if (rank.communicator.rank() == 1) return;
    std::vector<std::byte> got(1000);
    copy_async(got.data(), rank.communicator.peer(1, piece->buffer.data()), got.size(), stream);
    synchronize(stream);
    require(got == std::vector<std::byte>(1000, std::byte{7}), "other bytes");
  }));
}

TEST_F(TwoPeers, CanMapEachOther) {
  EXPECT_TRUE(run_on_gpus(1, [](GpuRank&) {}, 20s, GpuTransport::peer)[0].message.empty());
  expect_success(run_threads(2, [](Communicator& control) {
    const bool all_cuda = can_map_peers(control, gpu_of(control.rank()));
    require(all_cuda, "two GPUs of this machine can't map each other");
    const Device cpu_on_rank_1 = control.rank() == 1 ? Device{} : gpu_of(0);
    require(!can_map_peers(control, cpu_on_rank_1), "a CPU was taken for a peer");
  }));
}

TEST_F(TwoPeers, ACpuIsRefusedOnBothRanks) {
  const auto outcomes = run_threads(2, [](Communicator& control) {
    rethrow_as_text<InvalidArgument>(
        [&] { cuda::require_peer_access(control, control.rank() == 1 ? Device{} : gpu_of(0)); });
  });
  expect_each_says(outcomes, {"rank 1 has no GPU"});
}

}  // namespace
}  // namespace aliquot
