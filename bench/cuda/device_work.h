/// \file
/// What a benchmark of a device's kernels is made of: arrays of a repeating pattern, so that results can be checked
/// where they lie, and times by events.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "aliquot/memory_resource.h"
#include "aliquot/streams.h"

namespace aliquot::bench {

inline constexpr Device gpu{Device::Type::cuda, 0};

/// Elements after which every array begins again.
inline constexpr std::size_t period = std::size_t{1} << 20;

/// Device memory that repeats `pattern` up to `bytes`.
class Repeated {
 public:
  Repeated(const std::vector<std::byte>& pattern, std::size_t bytes, Stream stream)
      : stream_(stream), memory_(device_memory(gpu)), buffer_(*memory_, bytes, stream) {
    copy_async(data(), pattern.data(), pattern.size(), stream);
    for (std::size_t done = pattern.size(); done < bytes; done *= 2) {
      copy_async(data<std::byte>() + done, data(), std::min(done, bytes - done), stream);
    }
    synchronize(stream);
  }

  template <typename T = void>
  T* data() const {
    return static_cast<T*>(static_cast<void*>(buffer_.data()));
  }

  /// Whether the first, a middle and the last period hold `pattern`.
  bool repeats(const std::vector<std::byte>& pattern) const {
    const std::size_t periods = buffer_.bytes() / pattern.size();
    std::vector<std::byte> bytes(pattern.size());
    for (const std::size_t at : {std::size_t{0}, periods / 2, periods - 1}) {
      copy_async(bytes.data(), buffer_.data() + at * pattern.size(), bytes.size(), stream_);
      synchronize(stream_);
      if (bytes != pattern) return false;
    }
    return true;
  }

 private:
  Stream stream_;
  std::unique_ptr<MemoryResource> memory_;
  Buffer buffer_;
};

template <typename T>
std::shared_ptr<Repeated> array_of(const std::vector<T>& values, Stream stream) {
  const auto bytes = std::as_bytes(std::span(values));
  return std::make_shared<Repeated>(std::vector(bytes.begin(), bytes.end()), bytes.size(), stream);
}

/// One kernel over its arrays.
struct Work {
  double bytes_per_element = 0;  ///< that it must read and write
  std::function<void()> run;
  std::function<bool()> is_right;  ///< after the first run
};

/// Seconds that the device takes for `run`.
inline double seconds(const std::function<void()>& run, Stream stream) {
  const auto new_event = [] {
    cudaEvent_t event = nullptr;
    cudaEventCreate(&event);
    return std::unique_ptr<CUevent_st, decltype(&cudaEventDestroy)>(event, cudaEventDestroy);
  };
  const auto start = new_event(), end = new_event();
  cudaEventRecord(start.get(), static_cast<cudaStream_t>(stream.handle));
  run();
  cudaEventRecord(end.get(), static_cast<cudaStream_t>(stream.handle));
  synchronize(stream);
  float milliseconds = 0;
  cudaEventElapsedTime(&milliseconds, start.get(), end.get());
  return 1e-3 * static_cast<double>(milliseconds);
}

inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace aliquot::bench
