#include <utility>

#include "register.h"
#include "walk.h"

namespace aliquot::python {
namespace {

/// Hooks on the gradients of what modules take and return, in one call for all tensors in it.
class GradientHooks {
 public:
  GradientHooks(Walk walk, py::object table, py::object key, py::object beside)
      : walk_(std::move(walk)), table_(std::move(table)), key_(std::move(key)), beside_(std::move(beside)) {}

  void add(const py::object& value, const py::object& hook) const {
    const auto add_to = [&](const py::object& tensor) {
      if (needs_gradient(tensor)) add_to_tensor(tensor, hook);
      return tensor;
    };
    walk_(add_to, value);
  }

  py::object views(const py::object& value, py::list found) const {
    static const Name view_as("view_as");
    const auto view = [&](const py::object& tensor) {
      if (!needs_gradient(tensor)) return tensor;
      const py::object view = call(tensor, view_as, tensor);
      found.append(view);
      return view;
    };
    return walk_(view, value);
  }

 private:
  static bool needs_gradient(py::handle tensor) {
    static const Name requires_grad("requires_grad");
    return get(tensor, requires_grad).ptr() == Py_True;
  }

  /// As tensor.register_hook(hook) does it, without the handle, which costs more than all the rest.
  void add_to_tensor(const py::object& tensor, const py::object& hook) const {
    static const Name grad_fn("grad_fn"), backward_hooks("_backward_hooks"), register_hook_dict("_register_hook_dict");
    const py::object maker = get(tensor, grad_fn);
    if (maker.is_none() || !get(tensor, backward_hooks).is_none()) {
      beside_(tensor, hook);
      return;
    }
    const py::object hooks = table_();
    hooks[key_] = hook;
    set(tensor, backward_hooks, hooks);
    call(maker, register_hook_dict, tensor);
  }

  Walk walk_;
  py::object table_, key_, beside_;
};

}  // namespace

void register_gradient_hooks(py::module_& module) {
  py::class_<GradientHooks>(module, "GradientHooks", "Hooks on the gradients of what modules take and return.")
      .def(py::init<Walk, py::object, py::object, py::object>(), py::kw_only(), py::arg("walk"), py::arg("table"),
           py::arg("key"), py::arg("beside"),
           "`table()`: an empty table of a tensor's hooks; `key`: of the hook that is put in. `beside(tensor, hook)` "
           "adds one to a leaf, or to a tensor that has hooks.")
      .def("add", &GradientHooks::add, py::arg("value"), py::arg("hook"),
           "`hook(gradient)` is called for each tensor in `value` that needs a gradient, when it is there.")
      .def("views", &GradientHooks::views, py::arg("value"), py::arg("found"),
           "`value` with a view in place of each tensor that needs a gradient; they are added to `found`.");
}

}  // namespace aliquot::python
