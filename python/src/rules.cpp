#include "aliquot/rules.h"

#include <string>
#include <vector>

#include <pybind11/stl.h>

#include "register.h"

namespace aliquot::python {
namespace {

template <typename Rule>
std::vector<std::string> states_of(const Rule&) {
  std::vector<std::string> names;
  for (const Role role : Rule::states) names.emplace_back(name_of(role));
  return names;
}

}  // namespace

// Each takes its hyperparameters in the order of its struct.
void register_rules(py::module_& module) {
  using py::arg;
  py::class_<AdamW>(module, "AdamW")
      .def_property_readonly("states", &states_of<AdamW>)
      .def(py::init<double, double, double, double, double>(), arg("lr"), arg("beta1"), arg("beta2"), arg("eps"),
           arg("weight_decay"));
  py::class_<AdamW8bit>(module, "AdamW8bit")
      .def_property_readonly("states", &states_of<AdamW8bit>)
      .def(py::init([](double lr, double beta1, double beta2, double eps, double weight_decay) {
             return AdamW8bit{{lr, beta1, beta2, eps, weight_decay}};
           }),
           arg("lr"), arg("beta1"), arg("beta2"), arg("eps"), arg("weight_decay"));
  py::class_<Adam>(module, "Adam")
      .def_property_readonly("states", &states_of<Adam>)
      .def(py::init<double, double, double, double, double>(), arg("lr"), arg("beta1"), arg("beta2"), arg("eps"),
           arg("weight_decay"));
  py::class_<Sgd>(module, "Sgd")
      .def_property_readonly("states", &states_of<Sgd>)
      .def(py::init<double, double>(), arg("lr"), arg("weight_decay"));
  py::class_<MomentumSgd>(module, "MomentumSgd")
      .def_property_readonly("states", &states_of<MomentumSgd>)
      .def(py::init<double, double, double, double, bool>(), arg("lr"), arg("momentum"), arg("dampening"),
           arg("weight_decay"), arg("nesterov"));
  py::class_<Lion>(module, "Lion")
      .def_property_readonly("states", &states_of<Lion>)
      .def(py::init<double, double, double, double>(), arg("lr"), arg("beta1"), arg("beta2"), arg("weight_decay"));
  py::class_<Adagrad>(module, "Adagrad")
      .def_property_readonly("states", &states_of<Adagrad>)
      .def(py::init<double, double, double, double, double>(), arg("lr"), arg("lr_decay"), arg("weight_decay"),
           arg("initial_accumulator_value"), arg("eps"));
  py::class_<Lamb>(module, "Lamb")
      .def_property_readonly("states", &states_of<Lamb>)
      .def(py::init<double, double, double, double, double>(), arg("lr"), arg("beta1"), arg("beta2"), arg("eps"),
           arg("weight_decay"));
}

}  // namespace aliquot::python
