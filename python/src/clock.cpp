#include <chrono>

#include "register.h"

namespace aliquot::python {
namespace {

/// Runs in a `with` block, which must not lie within another of the same clock.
class Clock {
 public:
  void enter() { start_ = Time::now(); }
  void exit(const py::args&) { seconds_ += std::chrono::duration<double>(Time::now() - start_).count(); }
  double seconds() const { return seconds_; }

 private:
  using Time = std::chrono::steady_clock;

  Time::time_point start_;
  double seconds_ = 0;
};

}  // namespace

void register_clock(py::module_& module) {
  py::class_<Clock>(module, "Clock",
                    "How long the host spends in a piece of code, all calls together. Runs in a `with` block, which "
                    "must not lie within another of the same clock.")
      .def(py::init<>())
      .def("__enter__", &Clock::enter)
      .def("__exit__", &Clock::exit)
      .def_property_readonly("seconds", &Clock::seconds);
}

}  // namespace aliquot::python
