#include "cuda/progress.h"

#include "cuda/launch.h"

namespace aliquot::cuda {

bool capturing(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  return cudaStreamIsCapturing(native(stream), &status) == cudaSuccess && status != cudaStreamCaptureStatusNone;
}

void Progress::mark(Stream stream) {
  if (capturing(stream)) return;
  const std::lock_guard lock(mutex_);
  last_.record(stream);
  if (since_.load() != never) return;
  oldest_.record(stream);
  since_ = Clock::now();
}

void Progress::precede(Stream stream) {
  if (!capturing(stream)) last_.block(stream);
}

Progress::Clock::duration Progress::age() {
  if (since_.load() == never) return {};
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (lock && oldest_.done()) since_ = never;
  const Clock::time_point since = since_;
  return since == never ? Clock::duration{} : Clock::now() - since;
}

}  // namespace aliquot::cuda
