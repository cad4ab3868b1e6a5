/// \file
/// Work of a stream as a graph.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

#include "aliquot/device.h"
#include "cuda/launch.h"

namespace aliquot::test {

class Captured {
 public:
  /// What `work` gives to `stream` is not done, but can be replayed.
  Captured(Stream stream, const std::function<void()>& work) {
    cuda::check(cudaStreamBeginCapture(cuda::native(stream), cudaStreamCaptureModeThreadLocal), "begin a capture");
    work();
    cudaGraph_t graph = nullptr;
    cuda::check(cudaStreamEndCapture(cuda::native(stream), &graph), "end a capture");
    const cudaError_t made = cudaGraphInstantiate(&graph_, graph, 0);
    cudaGraphDestroy(graph);
    cuda::check(made, "make a graph");
  }
  Captured(const Captured&) = delete;
  Captured& operator=(const Captured&) = delete;
  ~Captured() { cudaGraphExecDestroy(graph_); }

  void replay(Stream stream) const { cuda::check(cudaGraphLaunch(graph_, cuda::native(stream)), "replay a graph"); }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace aliquot::test
