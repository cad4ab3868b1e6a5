/// \file
/// Fills the CUDA seam in a CPU build; a CUDA build links cuda/ instead.
#include <cstring>
#include <string>

#include "aliquot/device_kernels.h"
#include "aliquot/memory_resource.h"
#include "aliquot/streams.h"

namespace aliquot {
namespace {

[[noreturn]] void refuse(const char* what) {
  throw DeviceError(std::string("this build has no CUDA back end, which ") + what +
                    " needs; build with nvcc on the path, or use the CPU");
}

void require_cpu(Device device, const char* what) {
  if (device.type != Device::Type::cpu) refuse(what);
}

}  // namespace

bool built_with_cuda() noexcept { return false; }

int cuda_device_count() noexcept { return 0; }

DeviceGuard::DeviceGuard(Device device) { require_cpu(device, "a CUDA device"); }
DeviceGuard::~DeviceGuard() {}  // not defaulted: in a CUDA build it is not trivial either

OwnedStream::OwnedStream(Device device, Priority) : device_(device) { require_cpu(device, "a CUDA stream"); }
OwnedStream::~OwnedStream() {}

Event::Event(Device device) { require_cpu(device, "a CUDA event"); }
Event::~Event() {}
void Event::record(Stream) {}
void Event::block(Stream) const {}
bool Event::done() const { return true; }
void Event::synchronize() const {}

TimedEvent::TimedEvent(Device device) { require_cpu(device, "a CUDA event"); }
TimedEvent::~TimedEvent() {}
void TimedEvent::record(Stream) { passed_ = std::chrono::steady_clock::now(); }
double TimedEvent::seconds_since(const TimedEvent& earlier) const {
  return std::chrono::duration<double>(passed_ - earlier.passed_).count();
}

void copy_async(void* to, const void* from, std::size_t bytes, Stream) {
  if (bytes != 0) std::memcpy(to, from, bytes);
}
void fill_async(void* data, std::uint8_t byte, std::size_t bytes, Stream) {
  if (bytes != 0) std::memset(data, byte, bytes);
}
void synchronize(Stream) {}

std::unique_ptr<MemoryResource> pinned_memory() { refuse("pinned memory"); }
std::unique_ptr<MemoryResource> device_memory(Device) { refuse("device memory"); }

namespace cuda {

void pack(const Layout&, std::span<const PackSource>, void*, DType, std::uint8_t*, Stream) { refuse("pack"); }
void cast(const void*, DType, void*, DType, std::size_t, Stream) { refuse("cast"); }
void scale(void*, DType, std::size_t, const float*, Stream) { refuse("scale"); }
std::size_t reduce_workspace_bytes() { return 0; }
void reduce(std::span<const void* const>, DType, float, void*, DType, std::size_t, Accumulate, DeviceStatistics*, void*,
            Stream) {
  refuse("reduce");
}
void pull_and_reduce(std::span<const void* const>, DType, float, void*, DType, std::size_t, Accumulate,
                     DeviceStatistics*, void*, Stream) {
  refuse("pull_and_reduce");
}
void grad_statistics(const void*, DType, std::size_t, DeviceStatistics*, void*, Stream) { refuse("grad_statistics"); }
void finish_report(const Rule&, const ReportShape&, const std::byte*, const void*, const int*, std::int64_t*, double,
                   LossScale*, StepState*, void*, Stream) {
  refuse("finish_report");
}
void update_loss_scale(LossScale*, const ScaleRule&, Stream) { refuse("update_loss_scale"); }
void update(const Rule&, const UnitUpdate&, Stream) { refuse("update"); }
void take(const Rule&, const UnitUpdate&, NormSquares*, Stream) { refuse("take"); }
void move(const Rule&, const UnitUpdate&, const float*, Stream) { refuse("move"); }
void sum_norms(const NormSquares*, const ChunkSpan*, std::size_t, NormSquares*, Stream) { refuse("sum_norms"); }
void trust_ratios(const NormSquares*, std::size_t, std::size_t, float*, Stream) { refuse("trust_ratios"); }
void split_masters(const float*, void*, std::uint16_t*, std::size_t, Stream) { refuse("split_masters"); }

}  // namespace cuda
}  // namespace aliquot
