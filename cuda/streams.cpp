#include "aliquot/streams.h"

#include <cuda.h>

#include <cstring>

#include "cuda/launch.h"

namespace aliquot {
namespace {

using cuda::check;
using cuda::native;

bool is_cpu(Device device) { return device.type == Device::Type::cpu; }

/// Without a device the null stream can only be the CPU's.
bool is_cpu(Stream stream) {
  static const bool no_device = cuda_device_count() == 0;
  return stream.handle == nullptr && no_device;
}

cudaEvent_t native_event(void* handle) { return static_cast<cudaEvent_t>(handle); }

/// Whether this process uses the device already. The driver answers; the runtime could not without starting it.
bool in_use(int device) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  if (cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &function, 12000, cudaEnableDefault, &found) !=
          cudaSuccess ||
      function == nullptr) {
    cudaGetLastError();
    return false;
  }
  unsigned flags = 0;
  int active = 0;
  const auto get_state = reinterpret_cast<CUresult (*)(CUdevice, unsigned*, int*)>(function);
  return get_state(device, &flags, &active) == CUDA_SUCCESS && active != 0;
}

}  // namespace

DeviceGuard::DeviceGuard(Device device) {
  if (is_cpu(device)) return;
  int current = 0;
  check(cudaGetDevice(&current), "say which device is current");
  if (current == device.index) return;
  check(cudaSetDevice(device.index), ("make device " + std::to_string(device.index) + " current").c_str());
  // To go back to a device that nobody uses would start it, at some hundred megabytes.
  if (in_use(current)) previous_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

OwnedStream::OwnedStream(Device device, Priority priority) : device_(device) {
  if (is_cpu(device)) return;
  const DeviceGuard guard(device);
  int least = 0, greatest = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "say which priorities streams have");
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, priority == Priority::high ? greatest : least),
        "create a stream");
  handle_ = stream;
}

OwnedStream::~OwnedStream() {
  if (handle_ != nullptr) cudaStreamDestroy(native(get()));
}

Event::Event(Device device) {
  if (is_cpu(device)) return;
  const DeviceGuard guard(device);
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "create an event");
  handle_ = event;
}

Event::~Event() {
  if (handle_ != nullptr) cudaEventDestroy(native_event(handle_));
}

void Event::record(Stream stream) {
  if (handle_ != nullptr) check(cudaEventRecord(native_event(handle_), native(stream)), "record an event");
}

void Event::block(Stream stream) const {
  if (handle_ != nullptr) {
    check(cudaStreamWaitEvent(native(stream), native_event(handle_), 0), "make a stream wait for an event");
  }
}

bool Event::done() const {
  if (handle_ == nullptr) return true;
  const cudaError_t status = cudaEventQuery(native_event(handle_));
  if (status == cudaErrorNotReady) {
    cudaGetLastError();  // an answer, not an error
    return false;
  }
  check(status, "ask for an event");
  return true;
}

void Event::synchronize() const {
  if (handle_ != nullptr) check(cudaEventSynchronize(native_event(handle_)), "wait for an event");
}

TimedEvent::TimedEvent(Device device) {
  if (is_cpu(device)) return;
  const DeviceGuard guard(device);
  cudaEvent_t event = nullptr;
  check(cudaEventCreate(&event), "create an event");
  handle_ = event;
}

TimedEvent::~TimedEvent() {
  if (handle_ != nullptr) cudaEventDestroy(native_event(handle_));
}

void TimedEvent::record(Stream stream) {
  if (handle_ == nullptr) {
    passed_ = std::chrono::steady_clock::now();
  } else {
    check(cudaEventRecord(native_event(handle_), native(stream)), "record an event");
  }
}

double TimedEvent::seconds_since(const TimedEvent& earlier) const {
  if (handle_ == nullptr) return std::chrono::duration<double>(passed_ - earlier.passed_).count();
  for (void* const event : {earlier.handle_, handle_}) {
    check(cudaEventSynchronize(native_event(event)), "wait for an event");
  }
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, native_event(earlier.handle_), native_event(handle_)), "time events");
  return 1e-3 * static_cast<double>(milliseconds);
}

void copy_async(void* to, const void* from, std::size_t bytes, Stream stream) {
  if (bytes == 0) return;
  if (is_cpu(stream)) {
    std::memcpy(to, from, bytes);
  } else {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, native(stream)), "copy");
  }
}

void fill_async(void* data, std::uint8_t byte, std::size_t bytes, Stream stream) {
  if (bytes == 0) return;
  if (is_cpu(stream)) {
    std::memset(data, byte, bytes);
  } else {
    check(cudaMemsetAsync(data, byte, bytes, native(stream)), "fill memory");
  }
}

void synchronize(Stream stream) {
  if (!is_cpu(stream)) check(cudaStreamSynchronize(native(stream)), "wait for a stream");
}

}  // namespace aliquot
