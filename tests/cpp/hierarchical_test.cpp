// The transport `hierarchical` does what a flat one does, and moves only shares between hosts.
#include <gtest/gtest.h>

#include <algorithm>
#include <span>

#include "aliquot/error.h"
#include "aliquot/transports.h"
#include "hosts.h"
#include "two_sided.h"

namespace aliquot {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

using Floats = std::vector<float>;

// Whole numbers, whose sums are exact in any order.
Floats values(int rank, std::size_t count) {
  Floats made(count);
  for (std::size_t i = 0; i < count; ++i) made[i] = static_cast<float>((rank + 1) * 1000 + static_cast<int>(i % 991));
  return made;
}

Floats sum(int world_size, std::size_t count) {
  Floats total(count);
  for (int rank = 0; rank < world_size; ++rank) {
    const Floats addends = values(rank, count);
    for (std::size_t i = 0; i < count; ++i) total[i] += addends[i];
  }
  return total;
}

std::span<std::byte> bytes_of(Floats& floats) { return std::as_writable_bytes(std::span(floats)); }

std::size_t index(int rank) { return static_cast<std::size_t>(rank); }

void check_gathers(Communicator& world, std::size_t count) {
  Floats expected;
  for (int rank = 0; rank < world.world_size(); ++rank) {
    const Floats theirs = values(rank, count);
    expected.insert(expected.end(), theirs.begin(), theirs.end());
  }
  Floats part = values(world.rank(), count), whole(expected.size());
  world.all_gather({"gather", "unit"}, bytes_of(part), bytes_of(whole).data());
  require(whole == expected, "all_gather");
  Floats in_place(expected.size());
  const auto mine = std::span(in_place).subspan(index(world.rank()) * count, count);
  std::ranges::copy(part, mine.begin());
  world.all_gather({"gather", "unit"}, std::as_bytes(mine), bytes_of(in_place).data());
  require(in_place == expected, "all_gather in place");
  for (int root = 0; root < world.world_size(); ++root) {
    Floats data = values(world.rank(), count);
    world.broadcast({"broadcast", "unit"}, bytes_of(data), root);
    require(data == values(root, count), "broadcast from rank " + std::to_string(root));
  }
}

void check_sums(Communicator& world, std::size_t count) {
  const std::size_t all = index(world.world_size()) * count;
  const Floats mine = values(world.rank(), all), expected = sum(world.world_size(), all);
  Floats part(count);
  world.reduce_scatter({"reduce", "unit"}, mine.data(), part);
  const auto piece = std::span(expected).subspan(index(world.rank()) * count, count);
  require(std::ranges::equal(part, piece), "reduce_scatter");
  Floats data = values(world.rank(), count);
  world.all_reduce({"sum", ""}, data);
  require(data == sum(world.world_size(), count), "all_reduce");
}

void check_exchange(Communicator& world, std::size_t count) {
  Floats input, expected, output(index(world.world_size()) * count);
  for (int rank = 0; rank < world.world_size(); ++rank) {
    const Floats to = values(10 * world.rank() + rank, count), from = values(10 * rank + world.rank(), count);
    input.insert(input.end(), to.begin(), to.end());
    expected.insert(expected.end(), from.begin(), from.end());
  }
  world.all_to_all({"exchange", ""}, bytes_of(input).data(), bytes_of(output).data(), count * sizeof(float));
  require(output == expected, "all_to_all");
}

class Hierarchical : public ::testing::TestWithParam<std::pair<int, int>> {};

TEST_P(Hierarchical, DoesWhatAFlatTransportDoes) {
  const auto [hosts, places] = GetParam();
  expect_success(run_hosts(hosts, places, [](Communicator& inside, Communicator& between) {
    const auto world = make_hierarchical_communicator(inside, between);
    for (const std::size_t count : {0U, 1U, 5U, 100'003U}) {
      check_gathers(*world, count);
      check_sums(*world, count);
      check_exchange(*world, count);
    }
    world->barrier({"end", ""});
  }));
}

INSTANTIATE_TEST_SUITE_P(Hosts, Hierarchical,
                         ::testing::Values(std::pair(2, 2), std::pair(2, 3), std::pair(3, 2), std::pair(1, 2),
                                           std::pair(2, 1)));

/// Counts what it takes to other hosts, and has only what the hierarchy needs.
class Counted : public TwoSided {
 public:
  explicit Counted(Communicator& inner) : TwoSided(inner) {}
  void all_gather(const Tag& tag, std::span<const std::byte> part, std::byte* whole, Stream stream) override {
    bytes += part.size();
    TwoSided::all_gather(tag, part, whole, stream);
  }
  void reduce_scatter(const Tag& tag, const float* whole, std::span<float> part, Stream stream) override {
    bytes += part.size_bytes();
    TwoSided::reduce_scatter(tag, whole, part, stream);
  }
  void broadcast(const Tag& tag, std::span<std::byte> data, int root, Stream stream) override {
    bytes += data.size();
    TwoSided::broadcast(tag, data, root, stream);
  }
  std::size_t bytes = 0;  ///< to each other host
};

TEST(HierarchicalTraffic, IsARanksShare) {
  expect_success(run_hosts(2, 3, [](Communicator& inside, Communicator& between) {
    Counted counted(between);
    const auto world = make_hierarchical_communicator(inside, counted);
    constexpr std::size_t count = 1200;  // of a shard
    const auto require_bytes = [&](std::size_t bytes, const char* what) {
      require(counted.bytes == bytes, std::string(what) + " sent " + std::to_string(counted.bytes) + " bytes");
      counted.bytes = 0;
    };
    Floats shard(count), whole(6 * count);
    world->all_gather({"gather", ""}, bytes_of(shard), bytes_of(whole).data());
    require_bytes(count * sizeof(float), "all_gather");
    world->reduce_scatter({"reduce", ""}, whole.data(), shard);
    require_bytes(count * sizeof(float), "reduce_scatter");
    world->broadcast({"broadcast", ""}, bytes_of(whole), 1);
    require_bytes(2 * count * sizeof(float), "broadcast");
  }));
}

TEST(HierarchicalFaults, RanksThatDisagreeAreToldEverywhere) {
  const auto outcomes = run_hosts(2, 2, [](Communicator& inside, Communicator& between) {
    const auto world = make_hierarchical_communicator(inside, between);
    std::vector<std::byte> part(8), whole(32);
    rethrow_as_text<CommunicatorError>([&] {
      world->all_gather({"gather", world->rank() == 3 ? "blocks.7" : "blocks.1"}, part, whole.data());
      world->barrier({"end", ""});
    });
  });
  expect_each_says(outcomes, {"rank 3", "blocks.7", "blocks.1"});
}

TEST(HierarchicalFaults, ARankThatLeavesIsMissedByItsNameInTheWorld) {
  const auto outcomes = run_hosts(2, 2, [](Communicator& inside, Communicator& between) {
    const auto world = make_hierarchical_communicator(inside, between);
    if (world->rank() == 3) return;
    std::vector<float> data(8);
    rethrow_as_text<PeerLost>([&] { world->all_reduce({"sum", ""}, data); });
  });
  EXPECT_NE(outcomes[2].message.find("rank 3 has left"), std::string::npos) << outcomes[2].message;
}

TEST(HierarchicalFaults, SendsOnlyWhereThereIsALink) {
  expect_success(run_hosts(2, 2, [](Communicator& inside, Communicator& between) {
    const auto world = make_hierarchical_communicator(inside, between);
    const int neighbour = world->rank() ^ 1, counterpart = world->rank() ^ 2, other = world->rank() ^ 3;
    for (const int peer : {neighbour, counterpart}) {
      Floats mine = values(world->rank(), 10), theirs(10);
      const auto give = [&] { world->send({"send", ""}, bytes_of(mine), peer); };
      const auto take = [&] { world->receive({"send", ""}, bytes_of(theirs), peer); };
      if (world->rank() < peer) give();
      take();
      if (world->rank() > peer) give();
      require(theirs == values(peer, 10), "receive");
    }
    std::byte nothing{};
    require(error_of<InvalidArgument>([&] { world->send({"send", ""}, {&nothing, 1}, other); }).find("joins them") !=
                std::string::npos,
            "a send to a rank that nothing joins");
  }));
}

}  // namespace
}  // namespace aliquot
