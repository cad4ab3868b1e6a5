// Memory speed of the device's kernels. The result of each is first checked against the host's kernels; then every
// iteration times it next to a copy of as many fp32 elements, so that `of_copy`, its bytes per second over the copy's,
// compares what the same device did in the same run. The times are medians.
#include <benchmark/benchmark.h>

#include <cmath>
#include <numeric>
#include <string>

#include "aliquot/device_kernels.h"
#include "aliquot/kernels.h"
#include "bench/cuda/device_work.h"
#include "bench/cuda/update_work.h"
#include "tests/cpp/formats.h"

namespace aliquot::bench {
namespace {

using test::encoded;
using test::numbers;
using test::representable;

/// An array of `count` elements of the host's `values`.
std::shared_ptr<Repeated> on_device(const std::vector<float>& values, DType dtype, std::size_t count, Stream stream) {
  return std::make_shared<Repeated>(encoded(values, dtype), count * size_of(dtype), stream);
}

Work copy_work(std::size_t count, Stream stream) {
  const auto from = on_device(numbers(period, 1), DType::fp32, count, stream);
  const auto to = on_device(numbers(period, 2), DType::fp32, count, stream);
  return {8, [=] { copy_async(to->data(), from->data(), count * sizeof(float), stream); },
          [=] { return to->repeats(encoded(numbers(period, 1), DType::fp32)); }};
}

template <DType from_dtype, DType to_dtype>
Work cast_work(std::size_t count, Stream stream) {
  const std::vector<float> values = numbers(period, 1, from_dtype);
  const auto from = on_device(values, from_dtype, count, stream);
  const auto to = on_device(numbers(period, 2), to_dtype, count, stream);
  return {static_cast<double>(size_of(from_dtype) + size_of(to_dtype)),
          [=] { cuda::cast(from->data(), from_dtype, to->data(), to_dtype, count, stream); },
          [=] { return to->repeats(encoded(values, to_dtype)); }};
}

template <DType dtype>
Work scale_work(std::size_t count, Stream stream) {
  std::vector<float> expected = numbers(period, 1, dtype);
  const auto data = on_device(expected, dtype, count, stream);
  const auto factor = array_of<float>({0.999F}, stream);
  scale(expected, 0.999F);
  return {2.0 * static_cast<double>(size_of(dtype)),
          [=] { cuda::scale(data->data(), dtype, count, factor->data<float>(), stream); },
          [=] { return data->repeats(encoded(expected, dtype)); }};
}

/// A unit of 16 parameters, each with a gradient.
template <DType gradient, DType outbox>
Work pack_work(std::size_t count, Stream stream) {
  constexpr std::size_t params = 16;
  const std::vector<float> values = numbers(period, 1, gradient);
  const auto from = on_device(values, gradient, count, stream);
  const auto full = on_device(numbers(period, 2), outbox, count, stream);
  const auto present = array_of(std::vector<std::uint8_t>(params), stream);
  UnitSpec unit{.name = "unit", .params = std::vector<ParamSpec>(params, {"param", count / params})};
  std::vector<cuda::PackSource> sources;
  for (std::size_t param = 0; param < params; ++param) {
    sources.push_back({from->data<std::byte>() + param * (count / params) * size_of(gradient), gradient});
  }
  return {static_cast<double>(size_of(gradient) + size_of(outbox)),
          [=, layout = Layout(unit, 1)] {
            (void)from;  // that the sources lie in
            cuda::pack(layout, sources, full->data(), outbox, present->data<std::uint8_t>(), stream);
          },
          [=] { return full->repeats(encoded(values, outbox)); }};
}

/// What a reduction works on besides its arrays.
struct Space {
  std::shared_ptr<Repeated> statistics, workspace;

  explicit Space(Stream stream)
      : statistics(array_of<cuda::DeviceStatistics>({{}}, stream)),
        workspace(array_of(std::vector<std::byte>(cuda::reduce_workspace_bytes()), stream)) {}

  /// Whether the square sum is that of `values` again and again.
  bool is_of(const std::vector<float>& values, std::size_t count, Stream stream) const {
    cuda::DeviceStatistics said;
    copy_async(&said, statistics->data(), sizeof said, stream);
    synchronize(stream);
    const double expected = grad_statistics(values).square_sum * static_cast<double>(count / period);
    return said.non_finite == 0 && std::abs(said.square_sum - expected) <= 1e-9 * expected;
  }
};

template <DType dtype, std::size_t ranks, Accumulate accumulate, DType result_dtype = DType::fp32>
Work reduce_work(std::size_t count, Stream stream) {
  std::vector<std::vector<float>> values;
  std::vector<const float*> host_parts;
  std::vector<std::shared_ptr<Repeated>> parts;
  std::vector<const void*> pointers;
  for (std::uint32_t rank = 0; rank < ranks; ++rank) {
    values.push_back(numbers(period, rank, dtype));
    parts.push_back(on_device(values.back(), dtype, count, stream));
    pointers.push_back(parts.back()->data());
  }
  for (const std::vector<float>& part : values) host_parts.push_back(part.data());
  std::vector<float> expected = numbers(period, 99, result_dtype);
  const auto result = on_device(expected, result_dtype, count, stream);
  constexpr float factor = 1.0F / static_cast<float>(ranks);
  reduce(host_parts, factor, expected, accumulate);
  for (float& value : expected) value = representable(value, result_dtype);
  const Space space(stream);
  return {static_cast<double>(ranks * size_of(dtype) + size_of(result_dtype) * (accumulate == Accumulate::yes ? 2 : 1)),
          [=] {
            (void)parts;
            cuda::reduce(pointers, dtype, factor, result->data(), result_dtype, count, accumulate,
                         space.statistics->data<cuda::DeviceStatistics>(), space.workspace->data(), stream);
          },
          [=] { return result->repeats(encoded(expected, result_dtype)) && space.is_of(expected, count, stream); }};
}

template <DType dtype>
Work statistics_work(std::size_t count, Stream stream) {
  const std::vector<float> values = numbers(period, 1, dtype);
  const auto data = on_device(values, dtype, count, stream);
  const Space space(stream);
  return {static_cast<double>(size_of(dtype)),
          [=] {
            cuda::grad_statistics(data->data(), dtype, count, space.statistics->data<cuda::DeviceStatistics>(),
                                  space.workspace->data(), stream);
          },
          [=] { return space.is_of(values, count, stream); }};
}

/// range(0): elements
void beside_copy(benchmark::State& state, Work (*work_of)(std::size_t, Stream)) {
  if (cuda_device_count() == 0) return state.SkipWithError("no CUDA device");
  const DeviceGuard guard(gpu);
  const OwnedStream stream(gpu, Priority::low);
  const auto count = static_cast<std::size_t>(state.range(0));
  const Work work = work_of(count, stream.get()), copy = copy_work(count, stream.get());
  // Before each timed run something else is read: otherwise one run pays for writing back what the other left in the
  // cache, and for the launch of its kernel.
  const Work sweep = statistics_work<DType::fp32>(128 * period, stream.get());
  work.run();
  copy.run();
  if (!work.is_right() || !copy.is_right()) return state.SkipWithError("differs from the host's kernel");
  std::vector<double> times, copy_times;
  for (auto _ : state) {
    sweep.run();
    copy_times.push_back(seconds(copy.run, stream.get()));
    sweep.run();
    times.push_back(seconds(work.run, stream.get()));
    state.SetIterationTime(times.back());
  }
  const double rate = work.bytes_per_element * static_cast<double>(count) / median(times);
  const double copy_rate = copy.bytes_per_element * static_cast<double>(count) / median(copy_times);
  const auto flags = benchmark::Counter::kDefaults;
  state.counters["bytes_per_s"] = benchmark::Counter(rate, flags, benchmark::Counter::kIs1000);
  state.counters["copy_bytes_per_s"] = benchmark::Counter(copy_rate, flags, benchmark::Counter::kIs1000);
  state.counters["of_copy"] = rate / copy_rate;
}

void sizes(benchmark::internal::Benchmark* bench) {
  bench->ArgName("elements")->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(25);
  for (const std::size_t periods : {16, 96, 256}) bench->Arg(static_cast<std::int64_t>(periods * period));
}

using enum DType;
BENCHMARK_CAPTURE(beside_copy, copy, copy_work)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, scale, scale_work<fp32>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, scale_bf16, scale_work<bf16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, cast_fp32_to_bf16, cast_work<fp32, bf16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, cast_bf16_to_fp32, cast_work<bf16, fp32>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, pack_bf16, pack_work<bf16, bf16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, pack_fp32, pack_work<fp32, fp32>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, pack_fp32_to_bf16, pack_work<fp32, bf16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, grad_statistics, statistics_work<fp32>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, grad_statistics_bf16, statistics_work<bf16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, reduce_2_bf16, reduce_work<bf16, 2, Accumulate::no>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, reduce_2_bf16_add, reduce_work<bf16, 2, Accumulate::yes>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, reduce_2_bf16_to_bf16, reduce_work<bf16, 2, Accumulate::no, bf16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, reduce_2_bf16_to_bf16_add, reduce_work<bf16, 2, Accumulate::yes, bf16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, reduce_2_fp32, reduce_work<fp32, 2, Accumulate::no>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, reduce_8_bf16, reduce_work<bf16, 8, Accumulate::no>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, reduce_16_bf16, reduce_work<bf16, 16, Accumulate::no>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, adamw_fp32, update_work<adamw, fp32, Master::none>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, adamw_bf16_low16, update_work<adamw, bf16, Master::low16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, adamw_bf16_low16_bf16grad, update_work<adamw, bf16, Master::low16, bf16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, adamw_bf16_fp32, update_work<adamw, bf16, Master::fp32>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, adamw_8bit_fp32, update_work<adamw_8bit, fp32, Master::none>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, adamw_8bit_bf16_low16, update_work<adamw_8bit, bf16, Master::low16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, adamw_8bit_bf16_low16_bf16grad, update_work<adamw_8bit, bf16, Master::low16, bf16>)
    ->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, adam_fp32, update_work<adam, fp32, Master::none>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, adam_bf16_low16, update_work<adam, bf16, Master::low16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, adam_bf16_low16_bf16grad, update_work<adam, bf16, Master::low16, bf16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, adam_bf16_fp32, update_work<adam, bf16, Master::fp32>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, sgd_fp32, update_work<sgd, fp32, Master::none>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, sgd_bf16_low16, update_work<sgd, bf16, Master::low16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, sgd_bf16_low16_bf16grad, update_work<sgd, bf16, Master::low16, bf16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, sgd_bf16_fp32, update_work<sgd, bf16, Master::fp32>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, momentum_sgd_fp32, update_work<momentum_sgd, fp32, Master::none>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, momentum_sgd_bf16_low16, update_work<momentum_sgd, bf16, Master::low16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, momentum_sgd_bf16_low16_bf16grad, update_work<momentum_sgd, bf16, Master::low16, bf16>)
    ->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, momentum_sgd_bf16_fp32, update_work<momentum_sgd, bf16, Master::fp32>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, lion_fp32, update_work<lion, fp32, Master::none>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, lion_bf16_low16, update_work<lion, bf16, Master::low16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, lion_bf16_low16_bf16grad, update_work<lion, bf16, Master::low16, bf16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, lion_bf16_fp32, update_work<lion, bf16, Master::fp32>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, adagrad_fp32, update_work<adagrad, fp32, Master::none>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, adagrad_bf16_low16, update_work<adagrad, bf16, Master::low16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, adagrad_bf16_low16_bf16grad, update_work<adagrad, bf16, Master::low16, bf16>)
    ->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, adagrad_bf16_fp32, update_work<adagrad, bf16, Master::fp32>)->Apply(sizes);

BENCHMARK_CAPTURE(beside_copy, lamb_fp32, take_and_move_work<lamb, fp32, Master::none>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, lamb_bf16_low16, take_and_move_work<lamb, bf16, Master::low16>)->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, lamb_bf16_low16_bf16grad, take_and_move_work<lamb, bf16, Master::low16, bf16>)
    ->Apply(sizes);
BENCHMARK_CAPTURE(beside_copy, lamb_bf16_fp32, take_and_move_work<lamb, bf16, Master::fp32>)->Apply(sizes);
}  // namespace
}  // namespace aliquot::bench
