// Memory speed of the CPU kernels. Each is first checked, bit by bit, against the plain kernels; then every iteration
// times it next to a copy of as many elements, so that `of_copy`, its bytes per second over the copy's, holds on a
// machine that others use as well.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <span>
#include <vector>

#include "aliquot/kernels.h"
#include "aliquot/memory_resource.h"
#include "aliquot/parallel.h"
#include "cpp/src/cpu/kernel_table.h"

namespace aliquot {
namespace {

/// Five arrays of `count` reproducible numbers in [0, 1), enough for any kernel.
class Arrays {
 public:
  explicit Arrays(std::size_t count) : count_(count) {
    std::uint32_t state = 1;
    for (Buffer& buffer : buffers_) {
      buffer = Buffer(host_memory(), count * sizeof(float));
      for (float& value : of(buffer))
        value = static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-24f;
    }
  }
  std::span<float> operator[](std::size_t index) const { return of(buffers_[index]); }
  std::size_t size() const { return buffers_.size(); }

 private:
  std::span<float> of(const Buffer& buffer) const { return {reinterpret_cast<float*>(buffer.data()), count_}; }

  std::size_t count_;
  std::array<Buffer, 5> buffers_;
};

using Kernel = GradStatistics (*)(const Arrays&);

GradStatistics copy_array(const Arrays& arrays) {
  copy(arrays[0], arrays[1].data());
  return {};
}

GradStatistics memcpy_array(const Arrays& arrays) {
  std::memcpy(arrays[1].data(), arrays[0].data(), arrays[0].size_bytes());
  return {};
}

template <Accumulate accumulate>
GradStatistics mean_of_two(const Arrays& arrays) {
  return reduce(std::array<const float*, 2>{arrays[0].data(), arrays[1].data()}, 0.5f, arrays[2], accumulate);
}

GradStatistics statistics(const Arrays& arrays) { return grad_statistics(arrays[0]); }

constexpr ParamStep tenth{.number = 10, .grad_scale = 0.5f};

template <typename R>
GradStatistics step(const Arrays& arrays) {
  update(R(), tenth, arrays[0], arrays[1], {arrays[2], arrays[3]});
  return {};
}

template <typename R>
GradStatistics step_bf16(const Arrays& arrays) {
  const Weights weights{arrays[4].data(), DType::bf16, arrays[0].data(), Master::fp32};
  update(R(), tenth, weights, arrays[1], {arrays[2], arrays[3]});
  return {};
}

template <DType dtype>
GradStatistics round_array(const Arrays& arrays) {
  cast(arrays[0].data(), DType::fp32, arrays[1].data(), dtype, arrays[0].size());
  return {};
}

template <DType dtype>
GradStatistics widen_array(const Arrays& arrays) {
  cast(arrays[0].data(), dtype, arrays[1].data(), DType::fp32, arrays[0].size());
  return {};
}

bool equals_plain(Kernel kernel, std::size_t count) {
  const Arrays fast(count), plain(count);
  const GradStatistics fast_statistics = kernel(fast);
  cpu::use(cpu::Isa::plain);
  const GradStatistics plain_statistics = kernel(plain);
  cpu::use(cpu::best_isa());
  bool equal = fast_statistics == plain_statistics;
  for (std::size_t i = 0; i < fast.size(); ++i) {
    equal = equal && std::memcmp(fast[i].data(), plain[i].data(), fast[i].size_bytes()) == 0;
  }
  return equal;
}

double seconds(Kernel kernel, const Arrays& arrays) {
  const auto start = std::chrono::steady_clock::now();
  benchmark::DoNotOptimize(kernel(arrays));
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// range(0): elements, range(1): threads. `bytes_per_element`: what the kernel must read and write.
void kernel_beside_copy(benchmark::State& state, Kernel kernel, double bytes_per_element) {
  const auto count = static_cast<std::size_t>(state.range(0));
  set_thread_count(static_cast<int>(state.range(1)));
  if (!equals_plain(kernel, count)) return state.SkipWithError("differs from the plain kernel");
  const Arrays arrays(count), copied(count);
  std::vector<double> kernel_times, copy_times;
  for (auto _ : state) {
    copy_times.push_back(seconds(copy_array, copied));
    kernel_times.push_back(seconds(kernel, arrays));
    state.SetIterationTime(kernel_times.back());
  }
  const double rate = bytes_per_element * static_cast<double>(count) / median(kernel_times);
  const double copy_rate = 8.0 * static_cast<double>(count) / median(copy_times);
  state.counters["bytes_per_s"] = benchmark::Counter(rate, benchmark::Counter::kDefaults, benchmark::Counter::kIs1000);
  state.counters["of_copy"] = rate / copy_rate;
}

void sizes_and_threads(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"elements", "threads"})
      ->ArgsProduct({{100'000, 1'000'000, 10'000'000, 50'000'000}, {1, 2}})
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

BENCHMARK_CAPTURE(kernel_beside_copy, copy, copy_array, 8)->Apply(sizes_and_threads);
BENCHMARK_CAPTURE(kernel_beside_copy, memcpy, memcpy_array, 8)->Apply(sizes_and_threads);
BENCHMARK_CAPTURE(kernel_beside_copy, reduce_assign, mean_of_two<Accumulate::no>, 12)->Apply(sizes_and_threads);
BENCHMARK_CAPTURE(kernel_beside_copy, reduce_add, mean_of_two<Accumulate::yes>, 16)->Apply(sizes_and_threads);
BENCHMARK_CAPTURE(kernel_beside_copy, grad_statistics, statistics, 4)->Apply(sizes_and_threads);
BENCHMARK_CAPTURE(kernel_beside_copy, adamw, step<AdamW>, 28)->Apply(sizes_and_threads);
BENCHMARK_CAPTURE(kernel_beside_copy, adamw_bf16, step_bf16<AdamW>, 30)->Apply(sizes_and_threads);
BENCHMARK_CAPTURE(kernel_beside_copy, adam, step<Adam>, 28)->Apply(sizes_and_threads);
BENCHMARK_CAPTURE(kernel_beside_copy, sgd, step<Sgd>, 12)->Apply(sizes_and_threads);
BENCHMARK_CAPTURE(kernel_beside_copy, momentum_sgd, step<MomentumSgd>, 20)->Apply(sizes_and_threads);
BENCHMARK_CAPTURE(kernel_beside_copy, lion, step<Lion>, 20)->Apply(sizes_and_threads);
BENCHMARK_CAPTURE(kernel_beside_copy, adagrad, step<Adagrad>, 20)->Apply(sizes_and_threads);
BENCHMARK_CAPTURE(kernel_beside_copy, to_bf16, round_array<DType::bf16>, 6)->Apply(sizes_and_threads);
BENCHMARK_CAPTURE(kernel_beside_copy, from_bf16, widen_array<DType::bf16>, 6)->Apply(sizes_and_threads);
BENCHMARK_CAPTURE(kernel_beside_copy, to_fp16, round_array<DType::fp16>, 6)->Apply(sizes_and_threads);
BENCHMARK_CAPTURE(kernel_beside_copy, from_fp16, widen_array<DType::fp16>, 6)->Apply(sizes_and_threads);

}  // namespace
}  // namespace aliquot
