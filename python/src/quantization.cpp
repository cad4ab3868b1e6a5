#include "aliquot/quantization.h"

#include <cstddef>
#include <string>

#include "register.h"
#include "roles.h"

namespace aliquot::python {
namespace {

using Address = std::uintptr_t;

std::uint8_t* codes_at(Address address) { return reinterpret_cast<std::uint8_t*>(address); }

float* floats_at(Address address) { return reinterpret_cast<float*>(address); }

}  // namespace

void register_quantization(py::module_& module) {
  module.attr("quantization_block") = quantization_block;
  module.def(
      "quantize",
      [](const std::string& role, Address numbers, Address codes, Address scales, std::size_t numel) {
        quantize(role_named(role), {floats_at(numbers), numel}, codes_at(codes), floats_at(scales));
      },
      py::call_guard<py::gil_scoped_release>(), "Codes and scales of fp32 numbers of a state, on the host.");
  module.def(
      "dequantize",
      [](const std::string& role, Address codes, Address scales, Address numbers, std::size_t numel) {
        dequantize(role_named(role), codes_at(codes), floats_at(scales), {floats_at(numbers), numel});
      },
      py::call_guard<py::gil_scoped_release>(), "The other way.");
}

}  // namespace aliquot::python
