#include "aliquot/device.h"

#include <gtest/gtest.h>

namespace aliquot {
namespace {

// Also the test that a CUDA build answers, instead of failing, where there is no driver.
TEST(Device, CountsDevicesOnlyInACudaBuild) {
  const int count = cuda_device_count();
  EXPECT_GE(count, 0);
  EXPECT_TRUE(built_with_cuda() || count == 0);
  EXPECT_EQ(cuda_device_count(), count);
}

}  // namespace
}  // namespace aliquot
