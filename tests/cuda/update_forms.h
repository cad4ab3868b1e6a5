/// \file
/// What the tests of updates on devices step: a unit of parameters of many sizes, in every form.
#pragma once

#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "aliquot/device_kernels.h"
#include "aliquot/kernels.h"
#include "aliquot/split_master.h"
#include "tests/cpp/formats.h"

namespace aliquot::test {

struct Form {
  DType dtype;
  Master master;
  DType grad = DType::fp32;
};

/// Parameter 2 has no gradient, parameter 5 no group.
inline const std::vector<std::size_t> numels{5, 16, 4000, 0, 10'001, 77, 1, 30'000, 3, 8192, 4097};
inline constexpr float grad_scale = 0.75F;

inline bool is_stepped(std::size_t param) { return param != 2 && param != 5; }

inline ParamStep param_step(std::size_t param, int step) { return {step + static_cast<int>(param), grad_scale}; }

/// As finish_report writes them.
template <typename R>
std::vector<cuda::ParamScalars<R>> all_scalars(const R& rule, int step) {
  std::vector<cuda::ParamScalars<R>> scalars(numels.size());
  for (std::size_t param = 0; param < numels.size(); ++param) {
    if (is_stepped(param)) scalars[param] = {1, rule.scalars(param_step(param, step).number)};
  }
  return scalars;
}

inline Layout update_layout() {
  UnitSpec unit{.name = "unit", .params = {}};
  for (const std::size_t numel : numels) unit.params.push_back({"param", numel});
  return {unit, 3};
}

inline std::vector<std::byte> low_halves(const std::vector<float>& masters) {
  std::vector<std::byte> bytes(masters.size() * 2);
  for (std::size_t i = 0; i < masters.size(); ++i) {
    const std::uint16_t low = split_master(masters[i]).low;
    std::memcpy(&bytes[2 * i], &low, 2);
  }
  return bytes;
}

inline std::vector<std::byte> high_halves(const std::vector<float>& masters) {
  std::vector<std::byte> bytes(masters.size() * 2);
  for (std::size_t i = 0; i < masters.size(); ++i) {
    const std::uint16_t high = split_master(masters[i]).high;
    std::memcpy(&bytes[2 * i], &high, 2);
  }
  return bytes;
}

/// What `form` keeps of the masters: the parameter's bytes, then those of the master's array.
inline std::pair<std::vector<std::byte>, std::vector<std::byte>> stored(const std::vector<float>& masters, Form form) {
  switch (form.master) {
    case Master::none: return {encoded(masters, DType::fp32), {}};
    case Master::fp32: return {encoded(masters, form.dtype), encoded(masters, DType::fp32)};
    case Master::low16: return {high_halves(masters), low_halves(masters)};
  }
  return {};
}

inline constexpr std::array all_forms{Form{DType::fp32, Master::none},
                                      Form{DType::bf16, Master::fp32},
                                      Form{DType::fp16, Master::fp32},
                                      Form{DType::bf16, Master::low16},
                                      Form{DType::fp32, Master::none, DType::bf16},
                                      Form{DType::bf16, Master::fp32, DType::bf16},
                                      Form{DType::fp16, Master::fp32, DType::bf16},
                                      Form{DType::bf16, Master::low16, DType::bf16}};

inline std::string name_of(const Form& form) {
  const std::array forms{"_alone", "_with_fp32_master", "_with_low16_master"};
  return std::string(name_of(form.dtype)) + forms[static_cast<std::size_t>(form.master)] + "_" +
         std::string(name_of(form.grad)) + "_gradient";
}

}  // namespace aliquot::test
