/// \file
/// The tensors in what modules take and return.
#pragma once

#include <utility>

#include "attributes.h"

namespace aliquot::python {

/// Changes the tensors in nested tuples, lists, dicts, and whatever `other` knows.
class Walk {
 public:
  Walk(py::object tensor, py::object other) : tensor_(std::move(tensor)), other_(std::move(other)) {}

  /// Calls change(tensor) for each. `value` itself, if nothing in it was changed.
  template <typename Change>
  py::object operator()(const Change& change, const py::object& value) const {
    if (is_tensor(value)) return change(value);
    const Depth depth;
    if (PyTuple_CheckExact(value.ptr())) return walk_tuple(change, value);
    if (PyList_CheckExact(value.ptr())) return walk_list(change, value);
    if (PyDict_CheckExact(value.ptr())) return walk_dict(change, value);
    return is_plain(value.ptr()) ? value : other_(in_python(change), value);
  }

  /// What `value` is can be told without asking `other`.
  bool knows(py::handle value) const {
    PyObject* const object = value.ptr();
    return is_tensor(value) || PyTuple_CheckExact(object) || PyList_CheckExact(object) || PyDict_CheckExact(object) ||
           is_plain(object);
  }

 private:
  /// Refuses containers that hold themselves, as Python's own recursion does.
  struct Depth {
    Depth() {
      if (Py_EnterRecursiveCall(" in a container of tensors") != 0) throw py::error_already_set();
    }
    ~Depth() { Py_LeaveRecursiveCall(); }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;
  };

  static py::object in_python(const py::object& change) { return change; }
  template <typename Change>
  static py::object in_python(const Change& change) {
    return py::cpp_function([&change](const py::object& tensor) { return change(tensor); });
  }

  bool is_tensor(py::handle value) const {
    return PyObject_TypeCheck(value.ptr(), reinterpret_cast<PyTypeObject*>(tensor_.ptr())) != 0;
  }

  static bool is_plain(PyObject* value) {
    return value == Py_None || PyBool_Check(value) || PyLong_CheckExact(value) || PyFloat_CheckExact(value) ||
           PyUnicode_CheckExact(value);
  }

  template <typename Change>
  py::object walk_tuple(const Change& change, const py::object& value) const {
    const auto tuple = py::reinterpret_borrow<py::tuple>(value);
    py::tuple changed(tuple.size());
    bool same = true;
    for (std::size_t i = 0; i < tuple.size(); ++i) {
      const py::object item = (*this)(change, tuple[i]);
      same = same && item.is(tuple[i]);
      changed[i] = item;
    }
    return same ? value : py::object(std::move(changed));
  }

  template <typename Change>
  py::object walk_list(const Change& change, const py::object& value) const {
    py::list changed;
    bool same = true;
    for (const py::handle item : value) {
      const py::object now = (*this)(change, py::reinterpret_borrow<py::object>(item));
      same = same && now.is(item);
      changed.append(now);
    }
    return same ? value : py::object(std::move(changed));
  }

  template <typename Change>
  py::object walk_dict(const Change& change, const py::object& value) const {
    py::dict changed;
    bool same = true;
    for (const auto& [key, item] : py::reinterpret_borrow<py::dict>(value)) {
      const py::object now = (*this)(change, py::reinterpret_borrow<py::object>(item));
      same = same && now.is(item);
      changed[key] = now;
    }
    return same ? value : py::object(std::move(changed));
  }

  py::object tensor_, other_;
};

}  // namespace aliquot::python
