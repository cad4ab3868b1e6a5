#include "aliquot/rules.h"

#include "register.h"

namespace aliquot::python {

// Each takes its hyperparameters in the order of its struct.
void register_rules(py::module_& module) {
  using py::arg;
  py::class_<AdamW>(module, "AdamW")
      .def(py::init<double, double, double, double, double>(), arg("lr"), arg("beta1"), arg("beta2"), arg("eps"),
           arg("weight_decay"));
  py::class_<Adam>(module, "Adam")
      .def(py::init<double, double, double, double, double>(), arg("lr"), arg("beta1"), arg("beta2"), arg("eps"),
           arg("weight_decay"));
  py::class_<Sgd>(module, "Sgd").def(py::init<double, double>(), arg("lr"), arg("weight_decay"));
  py::class_<MomentumSgd>(module, "MomentumSgd")
      .def(py::init<double, double, double, double, bool>(), arg("lr"), arg("momentum"), arg("dampening"),
           arg("weight_decay"), arg("nesterov"));
  py::class_<Lion>(module, "Lion")
      .def(py::init<double, double, double, double>(), arg("lr"), arg("beta1"), arg("beta2"), arg("weight_decay"));
  py::class_<Adagrad>(module, "Adagrad")
      .def(py::init<double, double, double, double, double>(), arg("lr"), arg("lr_decay"), arg("weight_decay"),
           arg("initial_accumulator_value"), arg("eps"));
}

}  // namespace aliquot::python
