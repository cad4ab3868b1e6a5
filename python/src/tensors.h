/// \file
/// What a step does to the parameters of a unit, and asks of them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "aliquot/reducer.h"
#include "attributes.h"

namespace aliquot::python {

using Versions = std::vector<std::int64_t>;

/// Each method is for several parameters, in one call. While they are guarded, torch is asked as if they were not.
class Tensors {
 public:
  /// \param ordinary, guarded  classes of parameters
  /// \param set_versions  set_versions(tensors, versions)
  /// \param grad  the attribute of plain tensors
  /// \param plainly  plainly(): a context in which guarded parameters are asked like plain tensors
  /// \param strided  the layout of dense tensors
  Tensors(py::object ordinary, py::object guarded, py::object set_versions, py::object grad, py::object plainly,
          py::object strided);

  void make_ordinary(const py::tuple& params) const { set_class(params, ordinary_); }
  void guard(const py::tuple& params) const { set_class(params, guarded_); }

  /// What autograd compares with those of what it saved.
  Versions versions(const py::tuple& params) const;
  void shift_versions(const py::tuple& params, std::int64_t by) const;

  /// What autograd left on each, a gradient or None; empty if it left none.
  py::list gradients(const py::tuple& params) const;
  /// Where all their gradients lie; empty if one is missing. None if one is not dense, contiguous, of `dtype` and as it
  /// says.
  std::optional<Gradients> addresses_of_gradients(const py::tuple& params, py::handle dtype) const;
  void drop_gradients(const py::tuple& params) const;

 private:
  class Plainly;

  static void set_class(const py::tuple& params, const py::object& type);
  py::object gradient_of(py::handle param) const;
  bool is_dense(py::handle gradient, py::handle dtype) const;

  py::object ordinary_, guarded_, set_versions_, grad_, plainly_, strided_;
};

}  // namespace aliquot::python
