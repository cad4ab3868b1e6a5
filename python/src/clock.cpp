#include "clock.h"

#include "register.h"

namespace aliquot::python {

void register_clock(py::module_& module) {
  py::class_<Clock>(module, "Clock",
                    "How long the host spends in a piece of code, all calls together. Runs in a `with` block, which "
                    "must not lie within another of the same clock.")
      .def(py::init<>())
      .def("__enter__", &Clock::start)
      .def("__exit__", [](Clock& self, const py::args&) { self.stop(); })
      .def_property_readonly("seconds", &Clock::seconds);
}

}  // namespace aliquot::python
