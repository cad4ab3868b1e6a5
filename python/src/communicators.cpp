#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include "aliquot/control.h"
#include "aliquot/error.h"
#include "aliquot/transports.h"
#include "register.h"

namespace aliquot::python {
namespace {

std::chrono::milliseconds milliseconds(double seconds) {
  if (!(seconds > 0)) throw InvalidArgument("timeout is " + std::to_string(seconds) + " s; it must be positive");
  return std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
}

std::unique_ptr<Communicator> shared_memory(std::function<void(const std::string&, const std::string&)> set,
                                            std::function<std::string(const std::string&)> get, const std::string& name,
                                            int rank, int world_size, double timeout, ControlChannel* channel,
                                            int first, int stride) {
  const KeyValueStore store{std::move(set), std::move(get)};
  return make_shared_memory_communicator(store, name, rank, world_size, milliseconds(timeout), channel,
                                         RankNames{first, stride});
}

std::unique_ptr<Communicator> peer(std::unique_ptr<Communicator> control, int device, ControlChannel* channel) {
  const py::gil_scoped_release release;
  return make_peer_communicator(std::move(control), {Device::Type::cuda, device}, channel);
}

std::unique_ptr<Communicator> nccl(std::unique_ptr<Communicator> control, int device, const py::bytes& unique_id,
                                   std::uintptr_t communicator, ControlChannel* channel) {
  const NcclOrigin origin{std::string(unique_id), reinterpret_cast<void*>(communicator)};
  const py::gil_scoped_release release;
  return make_nccl_communicator(std::move(control), {Device::Type::cuda, device}, origin, channel);
}

std::unique_ptr<Communicator> hierarchical(Communicator& inside, Communicator& between, int device) {
  return make_hierarchical_communicator(inside, between, device < 0 ? Device{} : Device{Device::Type::cuda, device});
}

/// Lets Ctrl-C end a wait.
void check_signals() {
  const py::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace

void register_communicators(py::module_& module) {
  const auto released = py::call_guard<py::gil_scoped_release>();
  py::class_<Communicator, py::smart_holder>(module, "Communicator", "What moves bytes between ranks.")
      .def_property_readonly("rank", &Communicator::rank)
      .def_property_readonly("world_size", &Communicator::world_size)
      .def_property_readonly("name", [](const Communicator& self) { return std::string(self.name()); })
      .def_property_readonly("one_sided", &Communicator::one_sided)
      .def(
          "barrier", [](Communicator& self, const std::string& what) { self.host().barrier({what, ""}); },
          py::arg("what"), released)
      .def(
          "broadcast",
          [](Communicator& self, const std::string& what, std::uintptr_t address, std::size_t bytes, int root,
             std::uintptr_t stream) {
            self.broadcast({"broadcast", what}, {reinterpret_cast<std::byte*>(address), bytes}, root,
                           Stream{reinterpret_cast<void*>(stream)});
          },
          py::arg("what"), py::arg("address"), py::arg("bytes"), py::arg("root"), py::arg("stream") = 0, released,
          "Overwrites `bytes` bytes at `address`, in the transport's memory, with those of rank `root`.")
      .def(
          "all_gather",
          [](Communicator& self, const std::string& what, const py::bytes& mine) {
            const std::string part = mine;
            std::string whole(part.size() * static_cast<std::size_t>(self.world_size()), '\0');
            {
              const py::gil_scoped_release release;
              self.host().all_gather({"all_gather", what}, std::as_bytes(std::span(part)),
                                     reinterpret_cast<std::byte*>(whole.data()));
            }
            return py::bytes(whole);
          },
          py::arg("what"), py::arg("mine"), "Every rank's bytes, of one length, joined in rank order.")
      .def(
          "all_gather_into",
          [](Communicator& self, const std::string& what, std::uintptr_t part, std::size_t bytes, std::uintptr_t whole,
             std::uintptr_t stream) {
            self.all_gather({"all_gather", what}, {reinterpret_cast<const std::byte*>(part), bytes},
                            reinterpret_cast<std::byte*>(whole), Stream{reinterpret_cast<void*>(stream)});
          },
          py::arg("what"), py::arg("part"), py::arg("bytes"), py::arg("whole"), py::arg("stream"), released,
          "Every rank's `bytes` bytes at `part`, in rank order, to `whole`; both in the transport's memory.")
      .def(
          "all_reduce",
          [](Communicator& self, const std::string& what, std::uintptr_t address, std::size_t count,
             std::uintptr_t stream) {
            self.all_reduce({"all_reduce", what}, {reinterpret_cast<float*>(address), count},
                            Stream{reinterpret_cast<void*>(stream)});
          },
          py::arg("what"), py::arg("address"), py::arg("count"), py::arg("stream"), released,
          "Sum over the ranks of `count` fp32 numbers in the transport's memory, in place.")
      .def("leave", &Communicator::leave, released, "Says that this rank is done. No call comes after it.")
      .def(
          "abort", [](Communicator& self, const std::string& reason) { self.abort(reason); }, py::arg("reason"))
      .def("require_intact", &Communicator::require_intact, released,
           "Raises what has ended this world, if anything has. Never waits.");

  module.def(
      "world_of_one", [] { return std::move(make_thread_communicators(1).front()); },
      "A communicator for a process that is alone.");
  module.def("shared_memory_communicator", &shared_memory, py::arg("set"), py::arg("get"), py::arg("name"),
             py::arg("rank"), py::arg("world_size"), py::arg("timeout"), py::arg("channel") = nullptr,
             py::arg("first") = 0, py::arg("stride") = 1,
             "Ranks are processes of one host, which find each other through the key-value store `set`, `get`. Errors "
             "call them first, first + stride, ...");
  module.def("hierarchical_communicator", &hierarchical, py::arg("inside"), py::arg("between"), py::arg("device") = -1,
             py::keep_alive<0, 1>(), py::keep_alive<0, 2>(),
             "`inside` joins the ranks of this host, `between` those with this rank's place in each host. Where both "
             "are of GPUs, `device` is this rank's.");
  // What takes a `control` owns it from then on; its Python object, of no use any more, keeps what it needs.
  module.def("nccl_communicator", &nccl, py::arg("control"), py::arg("device"), py::arg("unique_id") = py::bytes(),
             py::arg("communicator") = 0, py::arg("channel") = nullptr, py::keep_alive<0, 1>(), py::keep_alive<0, 5>(),
             "Ranks are GPUs, `device` this rank's. `control`, which moves host memory between them, goes over to it. "
             "Between hosts, and where the ranks are not all of the world, it needs the `channel` of all. `unique_id` "
             "and `communicator` (an address): see NcclOrigin.");
  module.def("peer_communicator", &peer, py::arg("control"), py::arg("device"), py::arg("channel") = nullptr,
             py::keep_alive<0, 1>(), py::keep_alive<0, 3>(),
             "Ranks are GPUs of one host that map each other's memory, `device` this rank's. `control` and `channel` "
             "are as for nccl_communicator.");
  module.def(
      "can_map_peers",
      [](Communicator& communicator, int device) { return can_map_peers(communicator, {Device::Type::cuda, device}); },
      py::arg("communicator"), py::arg("device"), released,
      "Whether peer_communicator would do for the ranks of `communicator` with these devices. Every rank asks.");
  module.def("set_nccl_library", &set_nccl_library, py::arg("path"),
             "Where to load NCCL from if the process holds no copy yet.");
  set_interrupt_check(check_signals);
}

}  // namespace aliquot::python
