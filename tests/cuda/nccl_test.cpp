// The transport nccl: what it alone has.
#include <gtest/gtest.h>

#include <cstddef>
#include <string>
#include <vector>

#include "aliquot/error.h"
#include "gpu_ranks.h"
#include "test_values.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

class Nccl : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() < 2) GTEST_SKIP() << "needs 2 GPUs, there are " << cuda_device_count();
  }
};

class NcclRegistered : public Nccl, public testing::WithParamInterface<std::size_t> {
 protected:
  std::size_t count() const { return GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(Counts, NcclRegistered, testing::Values(1, 1000, 9'000'001));

TEST_P(NcclRegistered, MemoryGivesTheSame) {
  expect_success(run_on_gpus(2, [&](GpuRank& rank) {
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

}  // namespace
}  // namespace aliquot
