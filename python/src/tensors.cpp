#include "tensors.h"

#include <utility>

#include "register.h"

namespace aliquot::python {
/// While it lives, guarded parameters are asked as if they were plain tensors.
class Tensors::Plainly {
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

Tensors::Tensors(py::object ordinary, py::object guarded, py::object set_versions, py::object grad, py::object plainly,
                 py::object strided)
    : ordinary_(std::move(ordinary)), guarded_(std::move(guarded)), set_versions_(std::move(set_versions)),
      grad_(std::move(grad)), plainly_(std::move(plainly)), strided_(std::move(strided)) {}

void Tensors::set_class(const py::tuple& params, const py::object& type) {
  static const Name name("__class__");
  for (const py::handle param : params) set(param, name, type);
}

Versions Tensors::versions(const py::tuple& params) const {
  static const Name version("_version");
  const Plainly plainly(*this, params);
  Versions versions;
  versions.reserve(params.size());
  for (const py::handle param : params) versions.push_back(get(param, version).cast<std::int64_t>());
  return versions;
}

void Tensors::shift_versions(const py::tuple& params, std::int64_t by) const {
  const Versions before = versions(params);
  py::tuple shifted(before.size());
  for (std::size_t i = 0; i < before.size(); ++i) shifted[i] = before[i] + by;
  set_versions_(params, shifted);
}

py::list Tensors::gradients(const py::tuple& params) const {
  const Plainly plainly(*this, params);
  py::list gradients;
  bool any = false;
  for (const py::handle param : params) {
    py::object gradient = gradient_of(param);
    any = any || !gradient.is_none();
    gradients.append(std::move(gradient));
  }
  return any ? gradients : py::list();
}

void Tensors::drop_gradients(const py::tuple& params) const {
  const Plainly plainly(*this, params);
  for (const py::handle param : params) {
    if (Py_TYPE(grad_.ptr())->tp_descr_set(grad_.ptr(), param.ptr(), Py_None) != 0) throw py::error_already_set();
  }
}

std::optional<Gradients> Tensors::addresses_of_gradients(const py::tuple& params, py::handle dtype) const {
  static const Name data_ptr("data_ptr");
  const Plainly plainly(*this, params);
  Gradients addresses;
  addresses.reserve(params.size());
  for (const py::handle param : params) {
    const py::object gradient = gradient_of(param);
    if (gradient.is_none()) return Gradients();
    if (!is_dense(gradient, dtype)) return {};
    addresses.push_back(reinterpret_cast<const void*>(call(gradient, data_ptr).cast<std::uintptr_t>()));
  }
  return addresses;
}

py::object Tensors::gradient_of(py::handle param) const {
  PyObject* const found = Py_TYPE(grad_.ptr())->tp_descr_get(grad_.ptr(), param.ptr(), nullptr);
  if (found == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(found);
}

bool Tensors::is_dense(py::handle gradient, py::handle dtype) const {
  static const Name dtype_of("dtype"), layout_of("layout"), is_contiguous("is_contiguous"), is_neg("is_neg");
  return get(gradient, dtype_of).is(dtype) && get(gradient, layout_of).is(strided_) &&
         call(gradient, is_contiguous).ptr() == Py_True && call(gradient, is_neg).ptr() == Py_False;
}

void register_tensors(py::module_& module) {
  py::class_<Tensors, std::shared_ptr<Tensors>>(module, "Tensors",
                                                "What a step asks of the parameters of a unit, in one call for all.")
      .def(py::init<py::object, py::object, py::object, py::object, py::object, py::object>(), py::kw_only(),
           py::arg("ordinary"), py::arg("guarded"), py::arg("set_versions"), py::arg("grad"), py::arg("plainly"),
           py::arg("strided"),
           "`ordinary`, `guarded`: classes of parameters. `set_versions(tensors, versions)`. `grad`: the attribute of "
           "plain tensors. `plainly()`: a context in which guarded parameters are asked like them. `strided`: the "
           "layout of dense tensors.")
      .def("gradients", &Tensors::gradients, py::arg("params"),
           "What autograd left on each, a gradient or None; empty if it left none.")
      .def("drop_gradients", &Tensors::drop_gradients, py::arg("params"));
}

}  // namespace aliquot::python
