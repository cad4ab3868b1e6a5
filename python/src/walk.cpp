#include "walk.h"

#include "register.h"

namespace aliquot::python {

void register_walk(py::module_& module) {
  py::class_<Walk>(module, "Walk", "Changes the tensors in nested tuples, lists, dicts and whatever `other` knows.")
      .def(py::init<py::object, py::object>(), py::arg("tensor"), py::arg("other"),
           "`tensor`: the class of tensors. `other(change, value)` is called for anything but tensors, tuples, lists, "
           "dicts, numbers, strings and None.")
      .def("__call__", &Walk::operator()<py::object>, py::arg("change"), py::arg("value"),
           "Calls `change(tensor)` for each. Returns `value` itself, if nothing in it became another object.");
}

}  // namespace aliquot::python
