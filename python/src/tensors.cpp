#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "attributes.h"
#include "register.h"

namespace aliquot::python {
namespace {

/// What a step does to each parameter of a unit, in one call for all of them.
class Tensors {
 public:
  Tensors(py::object ordinary, py::object guarded, py::object set_versions, py::object grad, py::object plainly,
          py::object strided)
      : ordinary_(std::move(ordinary)), guarded_(std::move(guarded)), set_versions_(std::move(set_versions)),
        grad_(std::move(grad)), plainly_(std::move(plainly)), strided_(std::move(strided)) {}

  py::tuple open(const py::tuple& params, std::int64_t shift) const {
    set_class(params, ordinary_);
    return shift_versions(params, shift);
  }

  std::optional<std::size_t> close(const py::tuple& params, std::int64_t shift, const py::tuple& opened) const {
    const py::tuple shifted = shift_versions(params, shift);
    set_class(params, guarded_);
    for (std::size_t i = 0; i < params.size(); ++i) {
      if (number(shifted[i]) != number(opened[i]) + shift) return i;
    }
    return {};
  }

  py::tuple shift_versions(const py::tuple& params, std::int64_t by) const {
    static const Name version("_version");
    py::tuple versions(params.size());
    {
      const Plainly plainly(*this, params);
      for (std::size_t i = 0; i < versions.size(); ++i) versions[i] = number(get(params[i], version)) + by;
    }
    if (by != 0) set_versions_(params, versions);
    return versions;
  }

  py::list gradients(const py::tuple& params) const {
    const Plainly plainly(*this, params);
    py::list gradients;
    bool any = false;
    for (const py::handle param : params) {
      gradients.append(gradient_of(param));
      any = any || !gradients[gradients.size() - 1].is_none();
    }
    return any ? gradients : py::list();
  }

  void drop_gradients(const py::tuple& params) const {
    const Plainly plainly(*this, params);
    for (const py::handle param : params) {
      if (Py_TYPE(grad_.ptr())->tp_descr_set(grad_.ptr(), param.ptr(), Py_None) != 0) throw py::error_already_set();
    }
  }

  std::vector<std::uintptr_t> gradient_addresses(const py::tuple& params, py::handle dtype) const {
    static const Name data_ptr("data_ptr");
    const Plainly plainly(*this, params);
    std::vector<std::uintptr_t> addresses;
    addresses.reserve(params.size());
    for (const py::handle param : params) {
      const py::object gradient = gradient_of(param);
      if (gradient.is_none() || !is_dense(gradient, dtype)) return {};
      addresses.push_back(call(gradient, data_ptr).cast<std::uintptr_t>());
    }
    return addresses;
  }

 private:
  /// While it lives, guarded parameters are asked as if they were plain tensors.
  class Plainly {
   public:
    Plainly(const Tensors& tensors, const py::tuple& params) {
      if (params.empty() || !py::type::handle_of(params[0]).is(tensors.guarded_)) return;
      scope_ = tensors.plainly_();
      scope_.attr("__enter__")();
    }
    ~Plainly() {
      if (scope_) scope_.attr("__exit__")(py::none(), py::none(), py::none());
    }
    Plainly(const Plainly&) = delete;
    Plainly& operator=(const Plainly&) = delete;

   private:
    py::object scope_;
  };

  static void set_class(const py::tuple& params, const py::object& type) {
    static const Name name("__class__");
    for (const py::handle param : params) set(param, name, type);
  }

  static std::int64_t number(py::handle value) { return value.cast<std::int64_t>(); }

  py::object gradient_of(py::handle param) const {
    PyObject* const found = Py_TYPE(grad_.ptr())->tp_descr_get(grad_.ptr(), param.ptr(), nullptr);
    if (found == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(found);
  }

  bool is_dense(py::handle gradient, py::handle dtype) const {
    static const Name dtype_of("dtype"), layout_of("layout"), is_contiguous("is_contiguous"), is_neg("is_neg");
    return get(gradient, dtype_of).is(dtype) && get(gradient, layout_of).is(strided_) &&
           call(gradient, is_contiguous).ptr() == Py_True && call(gradient, is_neg).ptr() == Py_False;
  }

  py::object ordinary_, guarded_, set_versions_, grad_, plainly_, strided_;
};

}  // namespace

void register_tensors(py::module_& module) {
  py::class_<Tensors>(module, "Tensors", "What a step does to each parameter of a unit, in one call for all of them.")
      .def(py::init<py::object, py::object, py::object, py::object, py::object, py::object>(), py::kw_only(),
           py::arg("ordinary"), py::arg("guarded"), py::arg("set_versions"), py::arg("grad"), py::arg("plainly"),
           py::arg("strided"),
           "`ordinary`, `guarded`: classes of parameters. `set_versions(tensors, versions)`. `grad`: the attribute of "
           "plain tensors. `plainly()`: a context in which guarded parameters are asked like them. `strided`: the "
           "layout of dense tensors.")
      .def("open", &Tensors::open, py::arg("params"), py::arg("shift"),
           "Makes them ordinary and adds to their versions, which autograd compares with those of what it saved. "
           "Returns the versions.")
      .def("close", &Tensors::close, py::arg("params"), py::arg("shift"), py::arg("opened"),
           "Adds to their versions, and guards them. Returns the first whose version was not what open() gave, or "
           "None.")
      .def("shift_versions", &Tensors::shift_versions, py::arg("params"), py::arg("by"))
      .def("gradients", &Tensors::gradients, py::arg("params"),
           "What autograd left on each, a gradient or None; empty if it left none.")
      .def("gradient_addresses", &Tensors::gradient_addresses, py::arg("params"), py::arg("dtype"),
           "Of all their gradients; empty if one is missing, or is not dense, contiguous, of `dtype` and as it says.")
      .def("drop_gradients", &Tensors::drop_gradients, py::arg("params"));
}

}  // namespace aliquot::python
