/// \file
/// Where a model is in its forward and backward, and which of the engine's verbs that calls for.
#pragma once

#include <memory>
#include <vector>

#include "aliquot/engine.h"
#include "clock.h"
#include "unit.h"

namespace aliquot::python {

/// What torch says of the thread that an event comes on.
struct Moment {
  bool builds_graph;
  Stream stream;
};

/// What happens at each event. What is rare is done by methods of the class that Python derives of this one.
class Passes {
 public:
  /// \param engine  an Engine
  /// \param units  of the model, in order
  /// \param root  the model's root module
  /// \param grad_mode  tells whether a graph is built
  /// \param stream  tells the handle of the stream that torch works on; None on CPUs
  /// \param guards_writes  whether a forward that writes to its parameters is an error
  Passes(py::object engine, const py::list& units, py::object root, py::object grad_mode, py::object stream,
         bool guards_writes);

  Moment now() const;
  bool uses_slots() const { return engine_->uses_slots(); }

  /// Before the forward of a module with units of its own, perhaps inside another such forward.
  void enter_forward(const py::object& module);
  /// After it, also if it raised.
  void leave_forward();
  /// Makes the unit's parameters usable for one call of a forward.
  void gather(Unit& unit, const Moment& now);
  /// Undoes gather().
  void give_back(Unit& unit, const Moment& now);

  /// What the forward of a module saved is about to be used.
  void pre_backward(const std::vector<Unit*>& units);
  /// It has been used.
  void post_backward(const std::vector<Unit*>& units);

  /// Before the first of our nodes of a backward.
  void enter_backward();
  /// Refuses a backward that read a slot without gathering its unit again.
  void require_seen(Unit& unit);
  /// The units on whose parameters autograd left gradients, with these.
  py::list left();
  void leave_backward();
  /// No graph from before will be walked.
  void end_step();

  template <typename Act>
  void each(const Act& act) {
    for (py::object* held : {&engine_object_, &root_, &grad_mode_, &stream_}) act(*held);
    for (py::object& unit : unit_objects_) act(unit);
  }

  int depth = 0;
  bool in_backward = false;
  bool synchronize = true;
  Clock forward_clock, backward_clock;

 private:
  void land(Unit& unit, const void* address);
  void gather_again(Unit& unit, const Moment& now);
  void make_room(Unit& unit, const Moment& now);
  void finish(Unit& unit, const Moment& now);
  void release(Unit& unit, const Gradients& gradients, const Moment& now);
  /// The object that Python knows this by, whose class has the methods for what is rare.
  py::object self() { return py::cast(this, py::return_value_policy::reference); }

  Engine* engine_;
  py::object engine_object_, root_, grad_mode_, stream_;
  std::vector<py::object> unit_objects_;
  std::vector<Unit*> units_;
  bool guards_writes_;
};

}  // namespace aliquot::python
