#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <span>

#include "aliquot/communicator.h"
#include "outcomes.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

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
  require(
      got.size() == expected.size() && (got.empty() || std::memcmp(got.data(), expected.data(), got.size_bytes()) == 0),
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

class Worlds : public ::testing::TestWithParam<std::tuple<Ranks, int>> {
 protected:
  Ranks ranks() const { return std::get<0>(GetParam()); }
  int world_size() const { return std::get<1>(GetParam()); }
};

TEST_P(Worlds, EveryCollectiveEqualsItsSerialReference) {
  expect_success(run(ranks(), world_size(), check_every_collective));
}

TEST_P(Worlds, OneSidedReadsSeeWhatWasPosted) { expect_success(run(ranks(), world_size(), check_one_sided)); }

std::string test_name(const ::testing::TestParamInfo<std::tuple<Ranks, int>>& with) {
  return std::to_string(std::get<1>(with.param)) + "_" + name_of(std::get<0>(with.param));
}

INSTANTIATE_TEST_SUITE_P(Communicator, Worlds,
                         ::testing::Combine(::testing::Values(Ranks::threads, Ranks::processes),
                                            ::testing::Range(1, 5)),
                         test_name);

}  // namespace
}  // namespace aliquot
