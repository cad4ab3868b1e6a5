/// \file
/// What the tests of the kernels that add parts share: parts, and what comes of them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "aliquot/device_kernels.h"
#include "tests/cuda/device_test.h"

namespace aliquot::test {

inline DeviceArray<std::byte> workspace(Stream stream) {
  return {std::vector<std::byte>(cuda::reduce_workspace_bytes()), stream};
}

/// What the parts are in, and what the result.
struct Types {
  DType parts;
  DType result;
};

inline constexpr std::array all_types{Types{DType::fp32, DType::fp32}, Types{DType::bf16, DType::fp32},
                                      Types{DType::fp16, DType::fp32}, Types{DType::fp32, DType::bf16},
                                      Types{DType::bf16, DType::bf16}, Types{DType::fp16, DType::bf16}};

inline std::string name_of_case(const testing::TestParamInfo<std::tuple<Types, int>>& info) {
  const auto [types, ranks] = info.param;
  return std::string(name_of(types.parts)) + "_to_" + std::string(name_of(types.result)) + "_" + std::to_string(ranks) +
         "_ranks";
}

inline std::vector<std::vector<float>> parts_of(int count, std::size_t numel, DType dtype) {
  std::vector<std::vector<float>> parts;
  for (int part = 0; part < count; ++part) parts.push_back(numbers(numel, static_cast<std::uint32_t>(part) + 1, dtype));
  return parts;
}

struct Outcome {
  std::vector<std::byte> result;
  cuda::DeviceStatistics statistics;
  cuda::DeviceStatistics of_result;  ///< the same by grad_statistics
};

/// The mean of the parts, by cuda::reduce or what has its contract; all arrays begin `offset` elements past a boundary.
inline Outcome outcome_of(decltype(cuda::reduce)* reduce, const std::vector<std::vector<float>>& parts, Types types,
                          const std::vector<float>& before, Accumulate accumulate, std::size_t offset, Stream stream) {
  std::vector<DeviceArray<std::byte>> arrays;
  std::vector<const void*> pointers;
  for (const std::vector<float>& part : parts) {
    arrays.emplace_back(encoded(part, types.parts), stream, offset * size_of(types.parts));
    pointers.push_back(arrays.back().data());
  }
  const DeviceArray<std::byte> result(encoded(before, types.result), stream, offset * size_of(types.result));
  const DeviceArray<cuda::DeviceStatistics> statistics(std::vector<cuda::DeviceStatistics>(2), stream);
  const DeviceArray<std::byte> space = workspace(stream);
  const float factor = 1.0F / static_cast<float>(parts.size());
  reduce(pointers, types.parts, factor, result.data(), types.result, before.size(), accumulate, statistics.data(),
         space.data(), stream);
  cuda::grad_statistics(result.data(), types.result, before.size(), statistics.data() + 1, space.data(), stream);
  return {result.values(), statistics.values()[0], statistics.values()[1]};
}

}  // namespace aliquot::test
