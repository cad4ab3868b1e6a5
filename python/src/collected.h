/// \file
/// Objects of ours that hold Python's, as its garbage collector must see them: what they hold may lead back to them.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>

namespace aliquot::python {

namespace py = pybind11;

/// For the py::class_ of a T, where `T::each(act)` calls act(object) for all py::objects in it.
template <typename T>
py::custom_type_setup collected() {
  // Before __init__ is through there is nothing to see; while the first of a class is made, not even room for it.
  static constexpr auto is_made = [](PyObject* self) {
    auto* const instance = reinterpret_cast<py::detail::instance*>(self);
    const bool has_room = instance->simple_layout || instance->nonsimple.values_and_holders != nullptr;
    return has_room && instance->get_value_and_holder().holder_constructed();
  };
  return py::custom_type_setup([](PyHeapTypeObject* heap_type) {
    PyTypeObject& type = heap_type->ht_type;
    type.tp_flags |= Py_TPFLAGS_HAVE_GC;
    type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
      Py_VISIT(Py_TYPE(self));
      int stop = 0;
      if (is_made(self)) {
        py::cast<T&>(py::handle(self)).each([&](const py::object& held) {
          if (stop == 0 && held) stop = visit(held.ptr(), arg);
        });
      }
      return stop;
    };
    type.tp_clear = [](PyObject* self) {
      if (is_made(self)) {
        py::cast<T&>(py::handle(self)).each([](py::object& held) { const py::object freed = std::exchange(held, {}); });
      }
      return 0;
    };
  });
}

}  // namespace aliquot::python
