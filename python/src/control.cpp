#include "aliquot/control.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <optional>

#include "aliquot/watchdog.h"
#include "register.h"

namespace aliquot::python {
namespace {

using std::chrono::milliseconds;

milliseconds to_milliseconds(double seconds) { return milliseconds(static_cast<std::int64_t>(seconds * 1000)); }

std::unique_ptr<ControlChannel> make(std::function<void(const std::string&, const std::string&)> set,
                                     std::function<std::string(const std::string&)> get, const std::string& name,
                                     int rank, int world_size, const std::string& address, double patience,
                                     double timeout) {
  const KeyValueStore store{std::move(set), std::move(get)};
  return std::make_unique<ControlChannel>(store, name, rank, world_size,
                                          ControlOptions{address, to_milliseconds(patience), to_milliseconds(timeout)});
}

py::list all_gather(ControlChannel& self, const std::string& name, const py::bytes& payload, double timeout) {
  std::vector<std::string> payloads;
  {
    const auto mine = static_cast<std::string_view>(payload);
    const py::gil_scoped_release release;
    payloads = self.all_gather(name, mine, to_milliseconds(timeout));
  }
  py::list list;
  for (const std::string& theirs : payloads) list.append(py::bytes(theirs));
  return list;
}

/// A Watchdog over a block of Python code.
class Watched {
 public:
  Watched(double limit, std::string what) : limit_(to_milliseconds(limit)), what_(std::move(what)) {}
  void enter() { watchdog_.emplace(limit_, what_); }
  void exit(const py::args&) { watchdog_.reset(); }

 private:
  milliseconds limit_;
  std::string what_;
  std::optional<Watchdog> watchdog_;
};

}  // namespace

void register_control(py::module_& module) {
  const auto released = py::call_guard<py::gil_scoped_release>();
  py::class_<ControlChannel>(module, "ControlChannel", "How ranks tell each other that they live, and why they stop.")
      .def(py::init(&make), py::arg("set"), py::arg("get"), py::arg("name"), py::arg("rank"), py::arg("world_size"),
           py::arg("address"), py::arg("patience"), py::arg("timeout"), released,
           "Joins the ranks, which find each other through the key-value store `set`, `get`. Times are in seconds.")
      .def_property_readonly("rank", &ControlChannel::rank)
      .def_property_readonly("world_size", &ControlChannel::world_size)
      .def("all_gather", &all_gather, py::arg("name"), py::arg("payload"), py::arg("timeout"),
           "What each rank gave under this name, by rank; the lengths may differ. From any thread.")
      .def("require_intact", &ControlChannel::require_intact, released)
      .def(
          "look_for_lost",
          [](const ControlChannel& self, double patience) { self.look_for_lost(to_milliseconds(patience)); },
          py::arg("patience"), released, "Raises PeerLost if a rank is lost, or leaves, before `patience` is over.")
      .def("announce", &ControlChannel::announce, py::arg("reason"), released,
           "Says to all ranks that this one gives up, and why.")
      .def("leave", &ControlChannel::leave, released, "Says that this rank is done. No call comes after it.")
      .def("advance", &ControlChannel::advance, "Counts a step.")
      .def("progress", &ControlChannel::progress, released, "How many steps each rank had made when it said so last.")
      .def("request_stop", &ControlChannel::request_stop, "Asks all ranks to stop.")
      .def("stop_on_terminate", &ControlChannel::stop_on_terminate,
           "Lets SIGTERM request a stop. False if the signal has a handler already.")
      .def("should_stop", &ControlChannel::should_stop, released,
           "True from the same call on, on all ranks, after any has requested a stop.");
  py::class_<Watched>(module, "Watchdog",
                      "Ends the process with code 70 if a block does not end within `limit` seconds.")
      .def(py::init<double, std::string>(), py::arg("limit"), py::arg("what"))
      .def("__enter__", &Watched::enter)
      .def("__exit__", &Watched::exit);
}

}  // namespace aliquot::python
