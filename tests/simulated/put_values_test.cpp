#include "aliquot/put_values.h"

#include <vector>

#include "tests/cuda/device_test.h"
#include "tests/simulated/streams.h"

namespace aliquot::test {
namespace {

using PutValues = OnDevice;

// A load puts values when it may not fail any more.
TEST_F(PutValues, TakesAllItNeedsOfTheDeviceBefore) {
  const std::vector<std::byte> values(std::size_t{3} << 20, std::byte{7});
  const DeviceArray<std::byte> place(std::vector<std::byte>(values.size()), stream());
  const ValuePutter putter(gpu, 3);
  const std::size_t before = simulated::taken();
  const Put puts[] = {{values, place.data()}};
  putter.put(puts);
  EXPECT_EQ(simulated::taken(), before);
  EXPECT_TRUE(same_bits(place.values(), values));
}

}  // namespace
}  // namespace aliquot::test
