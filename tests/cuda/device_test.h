/// \file
/// What the tests of this folder share: a device to run on, or a skip; and arrays that are compared with the host's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "aliquot/memory_resource.h"
#include "aliquot/streams.h"
#include "tests/cpp/formats.h"

namespace aliquot::test {

inline constexpr Device gpu{Device::Type::cuda, 0};

class OnDevice : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device";
    guard_.emplace(gpu);
    stream_ = OwnedStream(gpu, Priority::low);
  }

  Stream stream() const { return stream_.get(); }

 private:
  std::optional<DeviceGuard> guard_;
  OwnedStream stream_;
};

template <typename Parameter>
class OnDeviceWith : public OnDevice, public testing::WithParamInterface<Parameter> {};

/// Elements in device memory that begin `offset` elements past a 256-byte boundary, between guards.
template <typename T>
class DeviceArray {
 public:
  DeviceArray(const std::vector<T>& values, Stream stream, std::size_t offset = 0)
      : stream_(stream), begin_(guard + offset), count_(values.size()), memory_(device_memory(gpu)),
        buffer_(*memory_, (begin_ + count_ + guard) * sizeof(T), stream) {
    fill_async(buffer_.data(), untouched, buffer_.bytes(), stream);
    copy_async(data(), values.data(), count_ * sizeof(T), stream);
    synchronize(stream);
  }

  T* data() const { return reinterpret_cast<T*>(buffer_.data()) + begin_; }

  /// After everything given to the stream so far. Fails if anything was written outside.
  std::vector<T> values() const {
    std::vector<std::byte> all(buffer_.bytes());
    copy_async(all.data(), buffer_.data(), all.size(), stream_);
    synchronize(stream_);
    const std::size_t first = begin_ * sizeof(T), last = (begin_ + count_) * sizeof(T);
    for (std::size_t i = 0; i < all.size(); ++i) {
      if ((i < first || i >= last) && all[i] != std::byte{untouched}) {
        ADD_FAILURE() << "byte " << i << " was written; the array is [" << first << ", " << last << ")";
        break;
      }
    }
    std::vector<T> inside(count_);
    if (count_ != 0) std::memcpy(inside.data(), &all[first], last - first);
    return inside;
  }

 private:
  static constexpr std::size_t guard = 256;
  static constexpr std::uint8_t untouched = 0xA5;

  Stream stream_;
  std::size_t begin_;
  std::size_t count_;
  std::unique_ptr<MemoryResource> memory_;
  Buffer buffer_;
};

template <typename T>
DeviceArray<T> one_of(const T& value, Stream stream) {
  return DeviceArray<T>({value}, stream);
}

/// Bit by bit, so that NaN equals itself and -0 differs from 0; says where and how many.
template <typename T>
testing::AssertionResult same_bits(const std::vector<T>& actual, const std::vector<T>& expected) {
  if (actual.size() != expected.size()) {
    return testing::AssertionFailure() << actual.size() << " elements, not " << expected.size();
  }
  std::size_t different = 0, first = 0;
  for (std::size_t i = actual.size(); i-- > 0;) {
    if (std::memcmp(&actual[i], &expected[i], sizeof(T)) == 0) continue;
    ++different;
    first = i;
  }
  if (different == 0) return testing::AssertionSuccess();
  return testing::AssertionFailure() << different << " of " << actual.size() << " elements differ, the first at "
                                     << first << ": " << testing::PrintToString(actual[first]) << ", not "
                                     << testing::PrintToString(expected[first]);
}

}  // namespace aliquot::test
