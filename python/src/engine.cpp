#include "aliquot/engine.h"

#include <pybind11/stl.h>

#include "register.h"

namespace aliquot::python {
namespace {

using Address = std::uintptr_t;
using Addresses = std::vector<Address>;

Address address_of(const float* pointer) { return reinterpret_cast<Address>(pointer); }

Gradients gradients_at(const Addresses& addresses) {
  Gradients gradients;
  gradients.reserve(addresses.size());
  for (const Address address : addresses) gradients.push_back(reinterpret_cast<const float*>(address));
  return gradients;
}

void finish_backward(Engine& engine, const std::vector<std::pair<std::size_t, Addresses>>& left) {
  Left gradients;
  for (const auto& [unit, addresses] : left) gradients.emplace_back(unit, gradients_at(addresses));
  engine.finish_backward(gradients);
}

std::unique_ptr<Engine> make_engine(std::vector<UnitSpec> units, Communicator& communicator, int stage,
                                    std::size_t slots, std::size_t ahead_bytes, bool poison) {
  EngineOptions options;
  options.stage = Stage(stage);
  options.gatherer.slots = slots;
  options.gatherer.ahead_bytes = ahead_bytes;
  options.gatherer.poison = poison;
  return std::make_unique<Engine>(std::move(units), communicator, host_memory(), options);
}

std::map<std::string, double> times(const EngineStatistics& statistics) {
  return {
      {"gather", statistics.gather.seconds}, {"reduce", statistics.reduce.seconds}, {"step", statistics.step_seconds}};
}

void register_values(py::module_& module) {
  py::class_<ParamSpec>(module, "ParamSpec")
      .def(py::init([](std::string name, std::size_t numel) { return ParamSpec{std::move(name), numel}; }),
           py::arg("name"), py::arg("numel"));
  py::class_<UnitSpec>(module, "UnitSpec")
      .def(py::init([](std::string name, std::vector<ParamSpec> params, bool trainable, bool encloses_units) {
             return UnitSpec{std::move(name), std::move(params), DType::fp32, trainable, encloses_units};
           }),
           py::arg("name"), py::arg("params"), py::arg("trainable"), py::arg("encloses_units"));
  py::class_<AdamWGroup>(module, "AdamWGroup")
      .def(py::init([](double lr, double beta1, double beta2, double eps, double weight_decay) {
             return AdamWGroup{lr, beta1, beta2, eps, weight_decay};
           }),
           py::arg("lr"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"));
  py::class_<StepResult>(module, "StepResult")
      .def_readonly("grad_norm", &StepResult::grad_norm)
      .def_readonly("skipped", &StepResult::skipped)
      .def_readonly("first_bad", &StepResult::first_bad);
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
      .def_readonly("steps", &EngineStatistics::steps)
      .def_readonly("skipped", &EngineStatistics::skipped);
}

}  // namespace

void register_engine(py::module_& module) {
  register_values(module);
  const auto released = py::call_guard<py::gil_scoped_release>();
  py::class_<Engine>(module, "Engine", "One rank of a sharded model; see aliquot/engine.h.")
      .def(py::init(&make_engine), py::arg("units"), py::arg("communicator"), py::kw_only(), py::arg("stage"),
           py::arg("slots"), py::arg("ahead_bytes"), py::arg("poison"), py::keep_alive<1, 3>(), released)
      .def(
          "pre_forward", [](Engine& self, std::size_t unit) { return address_of(self.pre_forward(unit)); }, released)
      .def(
          "post_forward", [](Engine& self, std::size_t unit) { self.post_forward(unit); }, released)
      .def("expect_backward", &Engine::expect_backward)
      .def("finish_forward", &Engine::finish_forward)
      .def(
          "pre_backward", [](Engine& self, std::size_t unit) { return address_of(self.pre_backward(unit)); }, released)
      .def(
          "post_backward",
          [](Engine& self, std::size_t unit, const Addresses& gradients) {
            return self.post_backward(unit, gradients_at(gradients));
          },
          released)
      .def("in_the_way", &Engine::in_the_way)
      .def("hold", &Engine::hold)
      .def("leave_backward", &Engine::leave_backward)
      .def("finish_backward", &finish_backward, released)
      .def("set_groups", &Engine::set_groups, released)
      .def(
          "step",
          [](Engine& self, const std::vector<AdamWGroup>& groups, std::optional<double> max_norm) {
            return self.step(groups, max_norm);
          },
          py::arg("groups"), py::arg("max_norm"), released)
      .def("gradient_report", &Engine::gradient_report, released)
      .def("scale_gradients", &Engine::scale_gradients, released)
      .def("clear_gradients", &Engine::clear_gradients)
      .def("clear_gradient", &Engine::clear_gradient, released)
      .def("has_gradient", &Engine::has_gradient)
      .def("whole_gradient", [](Engine& self, std::size_t unit) { return address_of(self.whole_gradient(unit)); })
      .def_property_readonly("uses_slots", &Engine::uses_slots, "Whether later units overwrite gathered ones.")
      .def("reset", &Engine::reset, released)
      .def("begin_write", &Engine::begin_write, released)
      .def(
          "write",
          [](Engine& self, std::size_t unit, std::size_t param, Address values) {
            self.write(unit, param, reinterpret_cast<const float*>(values));
          },
          released)
      .def("end_write", &Engine::end_write, released)
      .def(
          "read",
          [](Engine& self, std::size_t unit, Address whole) { self.read(unit, reinterpret_cast<float*>(whole)); },
          released)
      .def(
          "offset",
          [](const Engine& self, std::size_t unit, std::size_t param) { return self.layout(unit).param(param).begin; },
          "Where a parameter starts in the flat unit, in elements.")
      .def(
          "numel", [](const Engine& self, std::size_t unit) { return self.layout(unit).numel(); },
          "Elements of the flat unit, padding included.")
      .def("statistics", &Engine::statistics);
}

}  // namespace aliquot::python
