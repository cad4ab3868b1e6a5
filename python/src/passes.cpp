#include "passes.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <utility>

#include "collected.h"
#include "register.h"

namespace aliquot::python {
namespace {

py::object known(Unit& unit) { return py::cast(&unit, py::return_value_policy::reference); }

/// Lets other threads of Python run while an engine's verb may wait.
template <typename Verb>
auto unlocked(const Verb& verb) {
  const py::gil_scoped_release release;
  return verb();
}

}  // namespace

Passes::Passes(py::object engine, const py::list& units, py::object root, py::object grad_mode, py::object stream,
               bool guards_writes)
    : engine_(engine.cast<Engine*>()), engine_object_(std::move(engine)), root_(std::move(root)),
      grad_mode_(std::move(grad_mode)), stream_(std::move(stream)), guards_writes_(guards_writes) {
  for (const py::handle unit : units) {
    unit_objects_.push_back(py::reinterpret_borrow<py::object>(unit));
    units_.push_back(unit.cast<Unit*>());
  }
}

Moment Passes::now() const {
  const bool builds_graph = call(grad_mode_).ptr() == Py_True;
  const auto stream = stream_.is_none() ? 0 : call(stream_).cast<std::uintptr_t>();
  return {builds_graph, {reinterpret_cast<void*>(stream)}};
}

// Forward

void Passes::enter_forward(const py::object& module) {
  if (in_backward || (depth > 0 && module.is(root_))) self().attr("give_up_unfinished")(module);
  ++depth;
}

void Passes::leave_forward() {
  depth = std::max(0, depth - 1);
  if (depth == 0 && !in_backward) engine_->finish_forward();
}

void Passes::gather(Unit& unit, const Moment& now) {
  if (in_backward) {
    make_room(unit, now);
  } else if (now.builds_graph && unit.trainable) {
    ++unit.expected;
  }
  land(unit, unlocked([&] { return engine_->pre_forward(unit.index, now.stream); }));
  if (now.builds_graph) engine_->expect_backward(unit.index);
  unit.open();
  if (guards_writes_) unit.watch_writes();
}

void Passes::land(Unit& unit, const void* address) {
  if (reinterpret_cast<std::uintptr_t>(address) == unit.address) return;
  self().attr("land")(known(unit), reinterpret_cast<std::uintptr_t>(address));
}

void Passes::give_back(Unit& unit, const Moment& now) {
  if (unit.open_count == 0) return;
  const auto written = unit.private_copies == 0 ? unit.written() : std::nullopt;
  unit.close();
  if (written) engine_->forget(unit.index);
  unlocked([&] { engine_->post_forward(unit.index, now.stream); });
  if (written) known(unit).attr("refuse_write")(*written);
}

// Backward

void Passes::enter_backward() {
  if (!in_backward) self().attr("begin_backward")();
}

void Passes::pre_backward(const std::vector<Unit*>& units) {
  const Running running(backward_clock);
  enter_backward();
  const Moment moment = now();
  for (Unit* unit : units) gather_again(*unit, moment);
}

void Passes::gather_again(Unit& unit, const Moment& now) {
  make_room(unit, now);
  if (const void* address = unlocked([&] { return engine_->pre_backward(unit.index, now.stream); })) {
    land(unit, address);
    unit.open();
    unit.open_in_backward = unit.seen_in_backward = true;
  }
  if (now.builds_graph && engine_->uses_slots() && !unit.held) {
    engine_->hold(unit.index);
    unit.held = true;
  }
}

/// Gives back a unit whose end no hook saw: its inputs were changed in place, or handed on.
void Passes::make_room(Unit& unit, const Moment& now) {
  const auto other = engine_->in_the_way(unit.index);
  if (!other) return;
  Unit& tenant = *units_.at(*other);
  if (tenant.open_in_backward && tenant.open_count == 1 + tenant.private_copies) release(tenant, {}, now);
}

void Passes::post_backward(const std::vector<Unit*>& units) {
  const Running running(backward_clock);
  enter_backward();
  const Moment moment = now();
  for (Unit* unit : units) {
    require_seen(*unit);
    finish(*unit, moment);
    unit->expected = std::max(0, unit->expected - 1);
  }
}

/// Ends one call's backward. Behind the last that is expected the gradients may be complete.
void Passes::finish(Unit& unit, const Moment& now) {
  if (unit.expected != 1 || !synchronize || !unit.trainable) return release(unit, {}, now);
  if (const auto addresses = unit.addresses_of_gradients()) return release(unit, *addresses, now);
  const py::tuple made = self().attr("complete_gradients")(known(unit));  // and what must live as long
  Gradients gradients;
  for (const py::handle address : made[0]) {
    gradients.push_back(reinterpret_cast<const void*>(address.cast<std::uintptr_t>()));
  }
  release(unit, gradients, now);
}

void Passes::release(Unit& unit, const Gradients& gradients, const Moment& now) {
  bool taken = false;
  try {
    taken = unlocked([&] { return engine_->post_backward(unit.index, gradients, now.stream); });
  } catch (...) {
    unit.close_backward();
    throw;
  }
  if (taken && !gradients.empty()) unit.drop_gradients();
  unit.close_backward();
}

void Passes::require_seen(Unit& unit) {
  if (unit.overwritten && !unit.was_gathered()) self().attr("refuse_unseen")(known(unit));
}

py::list Passes::left() {
  py::list found;
  for (Unit* unit : units_) {
    if (py::list gradients = unit->gradients(); !gradients.empty()) {
      found.append(py::make_tuple(known(*unit), std::move(gradients)));
    }
  }
  return found;
}

void Passes::leave_backward() {
  for (Unit* unit : units_) {
    unit->close_backward();
    unit->seen_in_backward = false;
  }
  in_backward = false;
}

void Passes::end_step() {
  for (Unit* unit : units_) {
    unit->expected = 0;
    unit->held = false;
    unit->mark();
  }
}

void register_passes(py::module_& module) {
  const auto clock = py::return_value_policy::reference_internal;
  py::class_<Passes>(module, "Passes",
                     "Where a model is in its forward and backward, and which of the engine's verbs that calls for.",
                     collected<Passes>())
      .def(py::init<py::object, py::list, py::object, py::object, py::object, bool>(), py::kw_only(), py::arg("engine"),
           py::arg("units"), py::arg("root"), py::arg("grad_mode"), py::arg("stream"), py::arg("guards_writes"))
      .def("enter_forward", &Passes::enter_forward, py::arg("module"))
      .def("leave_forward", &Passes::leave_forward)
      .def(
          "gather", [](Passes& self, Unit& unit) { self.gather(unit, self.now()); }, py::arg("unit"))
      .def(
          "give_back", [](Passes& self, Unit& unit) { self.give_back(unit, self.now()); }, py::arg("unit"))
      .def("post_backward", &Passes::post_backward, py::arg("units"))
      .def("enter_backward", &Passes::enter_backward)
      .def("require_seen", &Passes::require_seen, py::arg("unit"))
      .def("left", &Passes::left)
      .def("leave_backward", &Passes::leave_backward)
      .def("end_step", &Passes::end_step)
      .def_readwrite("depth", &Passes::depth)
      .def_readwrite("in_backward", &Passes::in_backward)
      .def_readwrite("synchronize", &Passes::synchronize)
      .def_readonly("forward_clock", &Passes::forward_clock, clock)
      .def_readonly("backward_clock", &Passes::backward_clock, clock);
}

}  // namespace aliquot::python
