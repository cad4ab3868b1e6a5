#include "aliquot/split_master.h"

#include <cstddef>

#include "register.h"

namespace aliquot::python {
namespace {

using Address = std::uintptr_t;

std::uint16_t* halves_at(Address address) { return reinterpret_cast<std::uint16_t*>(address); }

std::span<float> masters_at(Address address, std::size_t numel) { return {reinterpret_cast<float*>(address), numel}; }

}  // namespace

void register_split_master(py::module_& module) {
  module.def(
      "join_masters",
      [](Address high, Address low, Address masters, std::size_t numel) {
        join_masters(halves_at(high), halves_at(low), masters_at(masters, numel));
      },
      py::call_guard<py::gil_scoped_release>(),
      "fp32 values from bf16 parameters and their 16 more bits, on the host.");
  module.def(
      "split_masters",
      [](Address masters, Address high, Address low, std::size_t numel) {
        split_masters(masters_at(masters, numel), halves_at(high), halves_at(low));
      },
      py::call_guard<py::gil_scoped_release>(), "The other way.");
}

}  // namespace aliquot::python
