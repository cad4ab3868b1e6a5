/// \file
/// A hook on the gradients of tensors that modules take and return.
#pragma once

#include <utility>

#include "attributes.h"

namespace aliquot::python {

inline bool needs_gradient(py::handle tensor) {
  static const Name requires_grad("requires_grad");
  return get(tensor, requires_grad).ptr() == Py_True;
}

/// Autograd is given it in the name of a *carrier*, a tensor that has no other hooks. So nothing is made for the tensor
/// that it is for, as tensor.register_hook(hook) makes a table of hooks and a handle.
class GradientHook {
 public:
  /// \param beside  beside(tensor, carrier) is called for leaves, and for tensors that are not their maker's first
  ///                output, for which no carrier can stand
  GradientHook(py::object carrier, py::object beside) : carrier_(std::move(carrier)), beside_(std::move(beside)) {}

  void add(const py::object& tensor) const {
    static const Name grad_fn("grad_fn"), output_nr("output_nr"), register_hook_dict("_register_hook_dict");
    const py::object maker = get(tensor, grad_fn);
    if (maker.is_none() || get(tensor, output_nr).cast<int>() != 0) {
      beside_(tensor, carrier_);
    } else {
      call(maker, register_hook_dict, carrier_);
    }
  }

  template <typename Act>
  void each(const Act& act) {
    act(carrier_);
    act(beside_);
  }

 private:
  py::object carrier_, beside_;
};

}  // namespace aliquot::python
