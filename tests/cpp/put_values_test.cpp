#include "aliquot/put_values.h"

#include <bit>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "aliquot/split_master.h"

namespace aliquot {
namespace {

TEST(PutValues, PutsPlainOnesAndHalvesOnTheHost) {
  std::vector<std::uint32_t> masters(300'001);
  for (std::size_t i = 0; i < masters.size(); ++i) masters[i] = static_cast<std::uint32_t>(i) * 2654435761U;
  for (const std::size_t threads : {0U, 1U, 3U}) {
    std::vector<std::uint32_t> plain(masters.size());
    std::vector<std::uint16_t> high(masters.size()), low(masters.size());
    const auto values = std::as_bytes(std::span(masters));
    const Put puts[] = {
        {values, std::as_writable_bytes(std::span(plain)).data()},
        {},
        {values, std::as_writable_bytes(std::span(high)).data(), std::as_writable_bytes(std::span(low)).data()}};
    ValuePutter({}, threads).put(puts);
    EXPECT_EQ(plain, masters);
    for (std::size_t i = 0; i < masters.size(); ++i) {
      const SplitMaster expected = split_master(std::bit_cast<float>(masters[i]));
      ASSERT_EQ(high[i], expected.high) << i;
      ASSERT_EQ(low[i], expected.low) << i;
    }
  }
}

}  // namespace
}  // namespace aliquot
