#include "aliquot/error.h"

#include "register.h"

namespace aliquot::python {

void register_errors(py::module_& module) {
  const auto error = py::register_exception<Error>(module, "Error", PyExc_RuntimeError);
  py::register_exception<InvalidArgument>(module, "InvalidArgument", error);
  py::register_exception<OutOfMemory>(module, "OutOfMemory", error);
  py::register_exception<DeviceError>(module, "DeviceError", error);
  py::register_exception<CheckpointError>(module, "CheckpointError", error);
  const auto communicator_error = py::register_exception<CommunicatorError>(module, "CommunicatorError", error);

  static py::handle peer_lost = py::exception<PeerLost>(module, "PeerLost", communicator_error).release();
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const PeerLost& lost) {
      py::object instance = peer_lost(lost.what());
      instance.attr("rank") = lost.rank();
      PyErr_SetObject(peer_lost.ptr(), instance.ptr());
    }
  });
}

}  // namespace aliquot::python
