/// \file
/// A stream that goes on when the test says so.
#pragma once

#include <future>
#include <memory>
#include <utility>

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include "aliquot/device.h"

namespace aliquot::test {

/// Holds a stream up until it is opened, or dies.
class Gate {
 public:
  explicit Gate(Stream stream) {
    auto* const opened = new std::shared_future<void>(promise_.get_future());  // the stream's, which may outlive this
    const auto wait = [](void* theirs) {
      const std::unique_ptr<std::shared_future<void>> future(static_cast<std::shared_future<void>*>(theirs));
      future->wait();
    };
    EXPECT_EQ(cudaLaunchHostFunc(static_cast<cudaStream_t>(stream.handle), wait, opened), cudaSuccess);
  }
  ~Gate() { open(); }
  void open() {
    if (!std::exchange(open_, true)) promise_.set_value();
  }

 private:
  std::promise<void> promise_;
  bool open_ = false;
};

}  // namespace aliquot::test
