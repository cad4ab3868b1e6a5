// The transports of GPUs: every collective gives what the CPU's gives.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "aliquot/error.h"
#include "gpu_ranks.h"
#include "test_values.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

template <typename Parameter>
class OnTransport : public testing::TestWithParam<Parameter> {
 protected:
  void SetUp() override {
    const int needed = gpus_needed(transport(), 2);
    if (cuda_device_count() < needed) GTEST_SKIP() << "needs " << needed << " GPUs, there are " << cuda_device_count();
  }
  virtual GpuTransport transport() const = 0;
  std::vector<Outcome> run(int world_size, const GpuBody& body) const {
    return run_on_gpus(world_size, body, patience, transport());
  }
};

class Collectives : public OnTransport<std::tuple<GpuTransport, std::size_t>> {
 protected:
  GpuTransport transport() const override { return std::get<0>(GetParam()); }
  std::size_t count() const { return std::get<1>(GetParam()); }
};
// Nothing; less than a message; odd; more than the buffers inside the transport.
INSTANTIATE_TEST_SUITE_P(Counts, Collectives,
                         testing::Combine(testing::Values(GpuTransport::nccl, GpuTransport::peer),
                                          testing::Values(0, 1, 1000, 9'000'001)),
                         [](const auto& info) {
                           return std::string(name_of(std::get<0>(info.param))) + "_" +
                                  std::to_string(std::get<1>(info.param));
                         });

TEST_P(Collectives, AllGather) {
  expect_success(run(2, [&](GpuRank& rank) {
    const auto part = bytes_of(rank.communicator.rank(), count());
    const Stream stream = rank.stream.get();
    const GpuBytes from(rank, part, stream), to(rank, 2 * count());
    rank.communicator.all_gather({"gather", "unit"}, from.span(), to.data(), stream);
    const auto expected = on_host(
        2 * count(), [&](std::byte* whole) { rank.communicator.host().all_gather({"gather", "unit"}, part, whole); });
    require(to.values(stream) == expected, "other bytes");
  }));
}

TEST_P(Collectives, AllGatherInPlace) {
  expect_success(run(2, [&](GpuRank& rank) {
    const auto own = static_cast<std::size_t>(rank.communicator.rank()) * count();
    auto whole = bytes_of(rank.communicator.rank(), 2 * count());
    const Stream stream = rank.stream.get();
    const GpuBytes on_gpu(rank, whole, stream);
    rank.communicator.all_gather({"gather", "unit"}, on_gpu.span().subspan(own, count()), on_gpu.data(), stream);
    rank.communicator.host().all_gather({"gather", "unit"}, std::span(whole).subspan(own, count()), whole.data());
    require(on_gpu.values(stream) == whole, "other bytes");
  }));
}

TEST_P(Collectives, BroadcastFromEach) {
  expect_success(run(2, [&](GpuRank& rank) {
    for (const int root : {0, 1}) {
      const Stream stream = rank.stream.get();
      const GpuBytes data(rank, bytes_of(rank.communicator.rank(), count()), stream);
      rank.communicator.broadcast({"broadcast", "unit"}, data.span(), root, stream);
      require(data.values(stream) == bytes_of(root, count()), "other bytes");
    }
  }));
}

TEST_P(Collectives, AllToAll) {
  expect_success(run(2, [&](GpuRank& rank) {
    const auto input = bytes_of(rank.communicator.rank(), 2 * count());
    const Stream stream = rank.stream.get();
    const GpuBytes from(rank, input, stream), to(rank, 2 * count());
    rank.communicator.all_to_all({"pieces", "unit"}, from.data(), to.data(), count(), stream);
    const auto expected = on_host(2 * count(), [&](std::byte* output) {
      rank.communicator.host().all_to_all({"pieces", "unit"}, input.data(), output, count());
    });
    require(to.values(stream) == expected, "other bytes");
  }));
}

TEST_P(Collectives, ExchangeBringsThePeersPieces) {
  expect_success(run(2, [&](GpuRank& rank) {
    const int me = rank.communicator.rank(), peer = 1 - me;
    const Stream stream = rank.stream.get();
    const GpuBytes from(rank, bytes_of(me, 2 * count()), stream), to(rank, 2 * count());
    rank.communicator.exchange({"pieces", "unit"}, from.data(), to.data(), count(), stream);
    const auto got = to.values(stream), sent = bytes_of(peer, 2 * count());
    const auto at = [&](int piece) { return static_cast<std::ptrdiff_t>(static_cast<std::size_t>(piece) * count()); };
    require(std::equal(got.begin() + at(peer), got.begin() + at(peer) + at(1), sent.begin() + at(me)), "other bytes");
  }));
}

TEST_P(Collectives, ReduceScatterAddsInRankOrder) {
  expect_success(run(2, [&](GpuRank& rank) {
    const auto whole = floats_of(rank.communicator.rank(), 2 * count());
    const Stream stream = rank.stream.get();
    const GpuBytes from(rank, as_bytes(whole), stream), to(rank, count() * sizeof(float));
    rank.communicator.reduce_scatter({"reduce", "unit"}, from.floats(), {to.floats(), count()}, stream);
    std::vector<float> expected(count());
    rank.communicator.host().reduce_scatter({"reduce", "unit"}, whole.data(), expected);
    require(to.values(stream) == as_bytes(expected), "other bits");
  }));
}

TEST_P(Collectives, AllReduceAddsInRankOrder) {
  expect_success(run(2, [&](GpuRank& rank) {
    auto data = floats_of(rank.communicator.rank(), count());
    const Stream stream = rank.stream.get();
    const GpuBytes on_gpu(rank, as_bytes(data), stream);
    rank.communicator.all_reduce({"norm", ""}, {on_gpu.floats(), count()}, stream);
    rank.communicator.host().all_reduce({"norm", ""}, data);
    require(on_gpu.values(stream) == as_bytes(data), "other bits");
  }));
}

TEST_P(Collectives, SendAndReceive) {
  expect_success(run(2, [&](GpuRank& rank) {
    const Stream stream = rank.stream.get();
    const GpuBytes data(rank, bytes_of(rank.communicator.rank(), count()), stream);
    for (const int from : {0, 1}) {
      if (rank.communicator.rank() == from) {
        rank.communicator.send({"hand over", ""}, data.span(), 1 - from, stream);
      } else {
        rank.communicator.receive({"hand over", ""}, data.span(), from, stream);
        require(data.values(stream) == bytes_of(0, count()), "other bytes");
      }
    }
  }));
}

class Worlds : public OnTransport<GpuTransport> {
 protected:
  GpuTransport transport() const override { return GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(Transports, Worlds, testing::Values(GpuTransport::nccl, GpuTransport::peer),
                         [](const auto& info) { return name_of(info.param); });

TEST_P(Worlds, GathersAndReductionsRunBesideEachOther) {
  constexpr std::size_t count = 1'000'000;
  constexpr int rounds = 200;
  expect_success(run(2, [&](GpuRank& rank) {
    const auto part = bytes_of(rank.communicator.rank(), count);
    const Stream gathers = rank.stream.get(), sums = rank.other_stream.get();
    const auto floats = floats_of(rank.communicator.rank(), 2 * count);
    const GpuBytes from(rank, part, gathers), to(rank, 2 * count);
    const GpuBytes addends(rank, as_bytes(floats), sums), sum(rank, count * sizeof(float));
    for (int i = 0; i < rounds; ++i) {
      const std::string unit = "blocks." + std::to_string(i);
      rank.communicator.all_gather({"gather", unit}, from.span(), to.data(), gathers);
      rank.communicator.reduce_scatter({"reduce", unit}, addends.floats(), {sum.floats(), count}, sums);
    }
    const auto expected =
        on_host(2 * count, [&](std::byte* whole) { rank.communicator.host().all_gather({"gather", ""}, part, whole); });
    require(to.values(gathers) == expected, "other bytes");
    std::vector<float> expected_sum(count);
    rank.communicator.host().reduce_scatter({"reduce", ""}, floats.data(), expected_sum);
    require(sum.values(sums) == as_bytes(expected_sum), "other bits");
  }));
}

TEST_P(Worlds, LaunchedWorkComesBeforeTheCallsBehindIt) {
  constexpr std::size_t count = 100'000;
  expect_success(run(2, [&](GpuRank& rank) {
    const Stream stream = rank.stream.get();
    const auto part = bytes_of(rank.communicator.rank(), count);
    const GpuBytes from(rank, part, stream), gathered(rank, 2 * count), traded(rank, 2 * count);
    const std::thread::id caller = std::this_thread::get_id();
    std::thread::id launcher = caller;
    for (int i = 0; i < 50; ++i) {
      const std::string unit = "blocks." + std::to_string(i);
      rank.communicator.launch([&, unit] {
        launcher = std::this_thread::get_id();
        rank.communicator.all_gather({"gather", unit}, from.span(), gathered.data(), stream);
      });
      rank.communicator.all_to_all({"pieces", unit}, gathered.data(), traded.data(), count, stream);
    }
    require(launcher != caller, "the caller launched it itself");
    const auto expected = on_host(2 * count, [&](std::byte* output) {
      std::vector<std::byte> whole(2 * count);
      rank.communicator.host().all_gather({"gather", ""}, part, whole.data());
      rank.communicator.host().all_to_all({"pieces", ""}, whole.data(), output, count);
    });
    require(traded.values(stream) == expected, "other bytes");
  }));
}

TEST_P(Worlds, NothingIsLaunchedOnceARankHasLeft) {
  expect_success(run(2, [](GpuRank& rank) {
    bool launched = false;
    rank.communicator.barrier({"last", ""});
    rank.communicator.leave();
    const std::string message =
        error_of<InvalidArgument>([&] { rank.communicator.launch([&launched] { launched = true; }); });
    require(message.find("has left") != std::string::npos, message);
    rank.communicator.await(Communicator::every_launch);
    require(!launched, "it was launched");
  }));
}

TEST_P(Worlds, ARankThatIsAloneGathersWhatItHas) {
  expect_success(run(1, [](GpuRank& rank) {
    const auto part = bytes_of(0, 1000);
    const Stream stream = rank.stream.get();
    const GpuBytes from(rank, part, stream), gathered(rank, 1000), traded(rank, 1000);
    rank.communicator.all_gather({"gather", "unit"}, from.span(), gathered.data(), stream);
    rank.communicator.all_to_all({"pieces", "unit"}, from.data(), traded.data(), 1000, stream);
    rank.communicator.broadcast({"broadcast", "unit"}, traded.span(), 0, stream);
    require(gathered.values(stream) == part, "other bytes gathered");
    require(traded.values(stream) == part, "other bytes traded");
  }));
}

}  // namespace
}  // namespace aliquot
