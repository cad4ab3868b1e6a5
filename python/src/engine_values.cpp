#include <map>
#include <string>
#include <utility>
#include <vector>

#include <pybind11/stl.h>

#include "aliquot/engine.h"
#include "dtypes.h"
#include "register.h"

namespace aliquot::python {
namespace {

std::map<std::string, double> times(const EngineStatistics& statistics) {
  return {
      {"gather", statistics.gather.seconds}, {"reduce", statistics.reduce.seconds}, {"step", statistics.step_seconds}};
}

}  // namespace

// What goes into an engine, and what comes out of it.
void register_engine_values(py::module_& module) {
  py::class_<ParamSpec>(module, "ParamSpec")
      .def(py::init([](std::string name, std::size_t numel) { return ParamSpec{std::move(name), numel}; }),
           py::arg("name"), py::arg("numel"));
  py::class_<UnitSpec>(module, "UnitSpec")
      .def(py::init([](std::string name, std::vector<ParamSpec> params, const std::string& dtype, bool trainable,
                       bool encloses_units) {
             return UnitSpec{std::move(name), std::move(params), dtype_named(dtype), trainable, encloses_units};
           }),
           py::arg("name"), py::arg("params"), py::arg("dtype"), py::arg("trainable"), py::arg("encloses_units"));
  py::class_<StepResult>(module, "StepResult")
      .def_readonly("grad_norm", &StepResult::grad_norm)
      .def_readonly("skipped", &StepResult::skipped)
      .def_readonly("first_bad", &StepResult::first_bad)
      .def_readonly("grad_scale", &StepResult::grad_scale)
      .def_property_readonly("steps_skipped", [](const StepResult& self) { return self.counts.skipped; })
      .def_property_readonly("skipped_in_a_row", [](const StepResult& self) { return self.counts.skipped_in_a_row; });
  py::class_<LossScale>(module, "LossScale")
      .def(py::init([](float scale, std::int32_t growth_tracker, bool overflow) {
             return LossScale{scale, growth_tracker, overflow ? 1U : 0U};
           }),
           py::arg("scale"), py::arg("growth_tracker") = 0, py::arg("overflow") = false)
      .def_readonly("scale", &LossScale::scale)
      .def_readonly("growth_tracker", &LossScale::growth_tracker)
      .def("updated", &LossScale::updated, py::arg("rule"));
  py::class_<ScaleRule>(module, "ScaleRule")
      .def(py::init([](double growth_factor, double backoff_factor, std::int64_t growth_interval) {
             return ScaleRule{growth_factor, backoff_factor, growth_interval};
           }),
           py::arg("growth_factor"), py::arg("backoff_factor"), py::arg("growth_interval"));
  py::class_<GradientReport>(module, "GradientReport")
      .def_readonly("norm", &GradientReport::norm)
      .def_readonly("non_finite", &GradientReport::non_finite)
      .def_readonly("first_bad", &GradientReport::first_bad);
  py::class_<EngineStatistics>(module, "EngineStatistics")
      .def_readonly("bytes", &EngineStatistics::bytes)
      .def_property_readonly("times", &times)
      .def_property_readonly("gathers", [](const EngineStatistics& self) { return self.gather.gathers; })
      .def_property_readonly("gathered_bytes", [](const EngineStatistics& self) { return self.gather.bytes; })
      .def_property_readonly("reduces", [](const EngineStatistics& self) { return self.reduce.reduces; })
      .def_property_readonly("reduced_bytes", [](const EngineStatistics& self) { return self.reduce.bytes; })
      .def_property_readonly("steps", [](const EngineStatistics& self) { return self.steps.steps; })
      .def_property_readonly("skipped", [](const EngineStatistics& self) { return self.steps.skipped; });
}

}  // namespace aliquot::python
