/// \file
/// Attributes of Python objects by names that are made once. What is asked of torch's tensors goes this way: nothing
/// here knows torch's own binary interface, so one build serves every version of it.
#pragma once

#include <pybind11/pybind11.h>

namespace aliquot::python {

namespace py = pybind11;

/// The name of an attribute. Lives as long as the process.
class Name {
 public:
  explicit Name(const char* text) : name_(PyUnicode_InternFromString(text)) {}
  PyObject* get() const { return name_; }

 private:
  PyObject* name_;
};

inline py::object get(py::handle object, const Name& name) {
  PyObject* const value = PyObject_GetAttr(object.ptr(), name.get());
  if (value == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}

inline void set(py::handle object, const Name& name, py::handle value) {
  if (PyObject_SetAttr(object.ptr(), name.get(), value.ptr()) != 0) throw py::error_already_set();
}

inline py::object call(py::handle function) {
  PyObject* const result = PyObject_CallNoArgs(function.ptr());
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

inline py::object call(py::handle object, const Name& method) {
  PyObject* const result = PyObject_CallMethodNoArgs(object.ptr(), method.get());
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

inline py::object call(py::handle object, const Name& method, py::handle argument) {
  PyObject* const result = PyObject_CallMethodOneArg(object.ptr(), method.get(), argument.ptr());
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

}  // namespace aliquot::python
