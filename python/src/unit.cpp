#include "unit.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <utility>

#include "collected.h"
#include "register.h"

namespace aliquot::python {
namespace {

/// What is added to the version of a parameter whose slot may be overwritten: autograd then refuses to read it.
constexpr std::int64_t closed = std::int64_t{1} << 30;
/// What is added while it is a private copy: what a forward saved of the slot is not to be read, and the other way.
constexpr std::int64_t private_copy = std::int64_t{1} << 29;

}  // namespace

Unit::Unit(std::shared_ptr<const Tensors> tensors, std::size_t index, py::tuple params, py::object dtype,
           bool trainable)
    : index(index), params(std::move(params)), dtype(std::move(dtype)), trainable(trainable),
      tensors_(std::move(tensors)), is_complex_(this->dtype.attr("is_complex").cast<bool>()) {}

void Unit::open() {
  ++open_count;
  if (open_count == 1) tensors_->make_ordinary(params);
  mark();
}

void Unit::close() {
  if (open_count == 0) return;
  --open_count;
  mark();
  if (open_count > 0) return;
  tensors_->guard(params);
  versions_.clear();
}

void Unit::close_backward() {
  if (!open_in_backward) return;
  open_in_backward = false;
  close();
}

void Unit::mark() {
  if (const std::int64_t by = shift(); by != 0) tensors_->shift_versions(params, by);
}

/// What is to be added to the versions now.
std::int64_t Unit::shift() {
  if (!overwritten) return 0;
  const bool gathered = held || open_count > private_copies;
  const std::int64_t other = private_copies > 0 ? private_copy : closed;
  const std::int64_t wanted = gathered ? 0 : other;
  return wanted - std::exchange(added_, wanted);
}

void Unit::watch_writes() {
  if (open_count == 1) versions_ = tensors_->versions(params);
}

std::optional<std::size_t> Unit::written() const {
  if (open_count != 1 || versions_.empty()) return {};
  const Versions now = tensors_->versions(params);
  const auto [then, found] = std::mismatch(versions_.begin(), versions_.end(), now.begin());
  if (found == now.end()) return {};
  return found - now.begin();
}

std::optional<Gradients> Unit::addresses_of_gradients() const {
  if (is_complex_) return {};  // they may be conjugates
  return tensors_->addresses_of_gradients(params, dtype);
}

void Unit::drop_gradients() {
  tensors_->drop_gradients(params);
  kept_gradients = false;
}

void register_unit(py::module_& module) {
  py::class_<Unit>(module, "Unit", "A unit of a sharded model, as passes through the model see it.", collected<Unit>())
      .def(py::init<std::shared_ptr<Tensors>, std::size_t, py::tuple, py::object, bool>(), py::arg("tensors"),
           py::arg("index"), py::arg("params"), py::arg("dtype"), py::arg("trainable"))
      .def("open", &Unit::open)
      .def("close", &Unit::close)
      .def("close_backward", &Unit::close_backward)
      .def("mark", &Unit::mark)
      .def("watch_writes", &Unit::watch_writes)
      .def("written", &Unit::written)
      .def("drop_gradients", &Unit::drop_gradients)
      .def("was_gathered", &Unit::was_gathered)
      .def("addresses_of_gradients",
           [](const Unit& self) -> std::optional<std::vector<std::uintptr_t>> {
             const auto found = self.addresses_of_gradients();
             if (!found) return {};
             std::vector<std::uintptr_t> addresses;
             for (const void* address : *found) addresses.push_back(reinterpret_cast<std::uintptr_t>(address));
             return addresses;
           })
      .def_readonly("index", &Unit::index)
      .def_readonly("params", &Unit::params)
      .def_readonly("dtype", &Unit::dtype)
      .def_readwrite("trainable", &Unit::trainable)
      .def_readwrite("address", &Unit::address)
      .def_readwrite("private_copies", &Unit::private_copies)
      .def_readwrite("open_count", &Unit::open_count)
      .def_readwrite("expected", &Unit::expected)
      .def_readwrite("open_in_backward", &Unit::open_in_backward)
      .def_readwrite("seen_in_backward", &Unit::seen_in_backward)
      .def_readwrite("kept_gradients", &Unit::kept_gradients)
      .def_readwrite("held", &Unit::held)
      .def_readwrite("overwritten", &Unit::overwritten);
  module.attr("closed_version") = closed;
}

}  // namespace aliquot::python
