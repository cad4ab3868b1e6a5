// The transport nccl: every collective gives what the CPU's gives.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

#include "aliquot/error.h"
#include "gpu_ranks.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

std::vector<std::byte> bytes_of(int rank, std::size_t count) {
  std::mt19937 random(static_cast<unsigned>(rank));
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// Numbers whose sum depends on the order.
std::vector<float> floats_of(int rank, std::size_t count) {
  std::mt19937 random(static_cast<unsigned>(100 + rank));
  std::uniform_real_distribution<float> exponent(-20, 20);
  std::vector<float> floats(count);
  for (float& value : floats) value = std::exp2(exponent(random)) * (random() % 2 == 0 ? 1.0F : -1.0F);
  return floats;
}

std::vector<std::byte> as_bytes(const std::vector<float>& floats) {
  const auto bytes = std::as_bytes(std::span(floats));
  return {bytes.begin(), bytes.end()};
}

/// The same call on host memory, through the communicator that the CPU transports' tests hold to their contract.
template <typename Call>
std::vector<std::byte> on_host(std::size_t bytes, const Call& call) {
  std::vector<std::byte> result(bytes);
  call(result.data());
  return result;
}

class NcclCollectives : public testing::TestWithParam<std::size_t> {
 protected:
  void SetUp() override {
    if (cuda_device_count() < 2) GTEST_SKIP() << "needs 2 GPUs, there are " << cuda_device_count();
  }
  std::size_t count() const { return GetParam(); }
};
// Nothing; less than a message; odd; more than the buffers inside NCCL.
INSTANTIATE_TEST_SUITE_P(Counts, NcclCollectives, testing::Values(0, 1, 1000, 9'000'001));

TEST_P(NcclCollectives, AllGather) {
  expect_success(run_on_gpus(2, [&](GpuRank& rank) {
    const auto part = bytes_of(rank.communicator.rank(), count());
    const Stream stream = rank.stream.get();
    const GpuBytes from(rank.device, part, stream), to(rank.device, 2 * count());
    rank.communicator.all_gather({"gather", "unit"}, from.span(), to.data(), stream);
    const auto expected = on_host(
        2 * count(), [&](std::byte* whole) { rank.communicator.host().all_gather({"gather", "unit"}, part, whole); });
    require(to.values(stream) == expected, "other bytes");
  }));
}

TEST_P(NcclCollectives, AllGatherInPlace) {
  expect_success(run_on_gpus(2, [&](GpuRank& rank) {
    const auto own = static_cast<std::size_t>(rank.communicator.rank()) * count();
    auto whole = bytes_of(rank.communicator.rank(), 2 * count());
    const Stream stream = rank.stream.get();
    const GpuBytes on_gpu(rank.device, whole, stream);
    rank.communicator.all_gather({"gather", "unit"}, on_gpu.span().subspan(own, count()), on_gpu.data(), stream);
    rank.communicator.host().all_gather({"gather", "unit"}, std::span(whole).subspan(own, count()), whole.data());
    require(on_gpu.values(stream) == whole, "other bytes");
  }));
}

TEST_P(NcclCollectives, BroadcastFromEach) {
  expect_success(run_on_gpus(2, [&](GpuRank& rank) {
    for (const int root : {0, 1}) {
      const Stream stream = rank.stream.get();
      const GpuBytes data(rank.device, bytes_of(rank.communicator.rank(), count()), stream);
      rank.communicator.broadcast({"broadcast", "unit"}, data.span(), root, stream);
      require(data.values(stream) == bytes_of(root, count()), "other bytes");
    }
  }));
}

TEST_P(NcclCollectives, AllToAll) {
  expect_success(run_on_gpus(2, [&](GpuRank& rank) {
    const auto input = bytes_of(rank.communicator.rank(), 2 * count());
    const Stream stream = rank.stream.get();
    const GpuBytes from(rank.device, input, stream), to(rank.device, 2 * count());
    rank.communicator.all_to_all({"pieces", "unit"}, from.data(), to.data(), count(), stream);
    const auto expected = on_host(2 * count(), [&](std::byte* output) {
      rank.communicator.host().all_to_all({"pieces", "unit"}, input.data(), output, count());
    });
    require(to.values(stream) == expected, "other bytes");
  }));
}

TEST_P(NcclCollectives, ExchangeBringsThePeersPieces) {
  expect_success(run_on_gpus(2, [&](GpuRank& rank) {
    const int me = rank.communicator.rank(), peer = 1 - me;
    const Stream stream = rank.stream.get();
    const GpuBytes from(rank.device, bytes_of(me, 2 * count()), stream), to(rank.device, 2 * count());
    rank.communicator.exchange({"pieces", "unit"}, from.data(), to.data(), count(), stream);
    const auto got = to.values(stream), sent = bytes_of(peer, 2 * count());
    const auto at = [&](int piece) { return static_cast<std::ptrdiff_t>(static_cast<std::size_t>(piece) * count()); };
    require(std::equal(got.begin() + at(peer), got.begin() + at(peer) + at(1), sent.begin() + at(me)), "other bytes");
  }));
}

TEST_P(NcclCollectives, ReduceScatterAddsInRankOrder) {
  expect_success(run_on_gpus(2, [&](GpuRank& rank) {
    const auto whole = floats_of(rank.communicator.rank(), 2 * count());
    const Stream stream = rank.stream.get();
    const GpuBytes from(rank.device, as_bytes(whole), stream), to(rank.device, count() * sizeof(float));
    rank.communicator.reduce_scatter({"reduce", "unit"}, from.floats(), {to.floats(), count()}, stream);
    std::vector<float> expected(count());
    rank.communicator.host().reduce_scatter({"reduce", "unit"}, whole.data(), expected);
    require(to.values(stream) == as_bytes(expected), "other bits");
  }));
}

TEST_P(NcclCollectives, AllReduceAddsInRankOrder) {
  expect_success(run_on_gpus(2, [&](GpuRank& rank) {
    auto data = floats_of(rank.communicator.rank(), count());
    const Stream stream = rank.stream.get();
    const GpuBytes on_gpu(rank.device, as_bytes(data), stream);
    rank.communicator.all_reduce({"norm", ""}, {on_gpu.floats(), count()}, stream);
    rank.communicator.host().all_reduce({"norm", ""}, data);
    require(on_gpu.values(stream) == as_bytes(data), "other bits");
  }));
}

TEST_P(NcclCollectives, SendAndReceive) {
  expect_success(run_on_gpus(2, [&](GpuRank& rank) {
    const Stream stream = rank.stream.get();
    const GpuBytes data(rank.device, bytes_of(rank.communicator.rank(), count()), stream);
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

TEST_P(NcclCollectives, RegisteredMemoryGivesTheSame) {
  expect_success(run_on_gpus(2, [&](GpuRank& rank) {
    if (count() == 0) return;
    const Stream stream = rank.stream.get();
    const auto memory = nccl_memory(rank.device);
    const std::size_t place = (count() + 4095) / 4096 * 4096;
    const Buffer whole(*memory, 3 * place, stream);
    const auto registered = rank.communicator.register_memory({whole.data(), whole.bytes()});
    require(registered != nullptr, "this NCCL registers nothing");
    const auto part = bytes_of(rank.communicator.rank(), count());
    copy_async(whole.data() + 2 * place, part.data(), count(), stream);
    rank.communicator.all_gather({"gather", "unit"}, {whole.data() + 2 * place, count()}, whole.data(), stream);
    std::vector<std::byte> got(2 * count());
    copy_async(got.data(), whole.data(), got.size(), stream);
    synchronize(stream);
    const auto expected =
        on_host(2 * count(), [&](std::byte* to) { rank.communicator.host().all_gather({"gather", "unit"}, part, to); });
    require(got == expected, "other bytes");
    rank.communicator.exchange({"pieces", "unit"}, whole.data(), whole.data() + 2 * place, count() / 2, stream);
    rank.communicator.barrier({"before it is given back", ""});
  }));
}

class Nccl : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() < 2) GTEST_SKIP() << "needs 2 GPUs, there are " << cuda_device_count();
  }
};

TEST_F(Nccl, GathersAndReductionsRunBesideEachOther) {
  constexpr std::size_t count = 1'000'000;
  constexpr int rounds = 200;
  expect_success(run_on_gpus(2, [&](GpuRank& rank) {
    const auto part = bytes_of(rank.communicator.rank(), count);
    const Stream gathers = rank.stream.get(), sums = rank.other_stream.get();
    const auto floats = floats_of(rank.communicator.rank(), 2 * count);
    const GpuBytes from(rank.device, part, gathers), to(rank.device, 2 * count);
    const GpuBytes addends(rank.device, as_bytes(floats), sums), sum(rank.device, count * sizeof(float));
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

TEST_F(Nccl, TwoRanksOfOneGpuAreRefused) {
  auto controls = make_thread_communicators(2, patience);
  std::vector<std::string> messages(2);
  std::vector<std::jthread> threads;
  for (std::size_t r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      use_the_nccl_of_the_build();
      messages[r] = error_of<InvalidArgument>([&] { make_nccl_communicator(std::move(controls[r]), gpu_of(0)); });
    });
  }
  threads.clear();
  for (const std::string& message : messages) EXPECT_NE(message.find("use the same GPU"), std::string::npos) << message;
}

TEST(NcclOfOneRank, GathersWhatItHas) {
  if (cuda_device_count() < 1) GTEST_SKIP() << "no CUDA device";
  expect_success(run_on_gpus(1, [](GpuRank& rank) {
    const auto part = bytes_of(0, 1000);
    const Stream stream = rank.stream.get();
    const GpuBytes from(rank.device, part, stream), gathered(rank.device, 1000), traded(rank.device, 1000);
    rank.communicator.all_gather({"gather", "unit"}, from.span(), gathered.data(), stream);
    rank.communicator.all_to_all({"pieces", "unit"}, from.data(), traded.data(), 1000, stream);
    rank.communicator.broadcast({"broadcast", "unit"}, traded.span(), 0, stream);
    require(gathered.values(stream) == part, "other bytes gathered");
    require(traded.values(stream) == part, "other bytes traded");
  }));
}

}  // namespace
}  // namespace aliquot
