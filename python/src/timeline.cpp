#include "aliquot/timeline.h"

#include <pybind11/stl.h>

#include "register.h"

namespace aliquot::python {
namespace {

/// \param device  index of a GPU, or -1 for the CPU
std::unique_ptr<Timeline> make_timeline(int device) {
  return std::make_unique<Timeline>(device < 0 ? Device{} : Device{Device::Type::cuda, device});
}

double seconds(Timeline::Clock::time_point time) {
  return std::chrono::duration<double>(time.time_since_epoch()).count();
}

}  // namespace

void register_timeline(py::module_& module) {
  py::class_<Slice>(module, "Slice")
      .def_property_readonly("activity", [](const Slice& self) { return name_of(self.activity); })
      .def_property_readonly(
          "exposed", [](const Slice& self) { return self.hold != Hold::none; },
          "Whether the caller's stream did it or waited for it.")
      .def_property_readonly("wait", [](const Slice& self) { return self.hold == Hold::wait; })
      .def_readonly("name", &Slice::name)
      .def_readonly("bytes", &Slice::bytes)
      .def_readonly("begin", &Slice::begin)
      .def_readonly("end", &Slice::end);
  py::class_<Timeline>(module, "Timeline", "See aliquot/timeline.h.")
      .def(py::init(&make_timeline), py::arg("device"), py::call_guard<py::gil_scoped_release>())
      .def_property_readonly(
          "origin", [](const Timeline& self) { return seconds(self.origin()); },
          "When it was made, in seconds of the host's monotonic clock.")
      .def("slices", &Timeline::slices, py::call_guard<py::gil_scoped_release>());
}

}  // namespace aliquot::python
