// Files of tensors that lie on a device: byte for byte those of the same tensors on the host.
#include "aliquot/shard_file.h"

#include <stdlib.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <string>
#include <vector>

#include "aliquot/split_master.h"
#include "tests/cuda/device_test.h"

namespace aliquot::test {
namespace {

/// With a folder that goes with the test.
class CudaShardFiles : public OnDevice {
 protected:
  void SetUp() override {
    OnDevice::SetUp();
    if (IsSkipped()) return;
    std::string name = (std::filesystem::temp_directory_path() / "aliquot-test-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override {
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }

  std::vector<std::uint32_t> crcs_of(const std::vector<FileTensor>& tensors) {
    const std::string path = (folder_ / std::to_string(files_++)).string();
    return write_shard_file(path, tensors, 4).crcs;
  }

 private:
  std::filesystem::path folder_;
  int files_ = 0;
};

template <typename T>
FileTensor on_device(const std::string& name, const std::string& dtype, const DeviceArray<T>& array,
                     std::size_t count) {
  return {.name = name,
          .dtype = dtype,
          .shape = {count},
          .data = std::as_bytes(std::span<const T>(array.data(), count)),
          .device = gpu};
}

TEST_F(CudaShardFiles, AreThoseOfTheHost) {
  std::vector<float> masters(chunk_bytes / 4 + 1001);
  for (std::size_t i = 0; i < masters.size(); ++i) masters[i] = std::bit_cast<float>(std::uint32_t(i) * 2654435761U);
  std::vector<std::uint16_t> high(masters.size()), low(masters.size());
  split_masters(masters, high.data(), low.data());
  const std::vector<std::uint8_t> bytes(12345, 7);

  const DeviceArray<float> plain(masters, stream(), 1);
  const DeviceArray<std::uint16_t> upper(high, stream(), 3), lower(low, stream(), 5);
  const DeviceArray<std::uint8_t> small(bytes, stream());
  FileTensor halves = on_device("halves", "F32", upper, high.size());
  halves.low = reinterpret_cast<const std::byte*>(lower.data());
  const auto on_host = [](const std::string& name, const std::string& dtype, const auto& values) {
    return FileTensor{.name = name, .dtype = dtype, .shape = {values.size()}, .data = std::as_bytes(std::span(values))};
  };

  const auto from_device = crcs_of({on_device("plain", "F32", plain, masters.size()), halves,
                                    on_device("small", "U8", small, bytes.size()), on_host("host", "U8", bytes)});
  EXPECT_EQ(from_device, crcs_of({on_host("plain", "F32", masters), on_host("halves", "F32", masters),
                                  on_host("small", "U8", bytes), on_host("host", "U8", bytes)}));
  EXPECT_EQ(from_device.size(), 3U);
}

}  // namespace
}  // namespace aliquot::test
