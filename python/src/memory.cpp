#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "aliquot/error.h"
#include "aliquot/memory_resource.h"
#include "dlpack.h"
#include "register.h"

namespace aliquot::python {
namespace {

/// Everything a DLPack tensor points to. The owner keeps the memory alive.
struct View {
  DLManagedTensor tensor{};
  std::vector<std::int64_t> shape;
  py::object owner;
};

void destroy(DLManagedTensor* tensor) {
  const py::gil_scoped_acquire acquire;
  delete static_cast<View*>(tensor->manager_ctx);
}

/// A capsule that nobody took still owns its tensor; one that was taken has been renamed.
void destroy_capsule(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, "dltensor") == 0) return;
  destroy(static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor")));
}

DLDataType dl_type(const std::string& dtype) {
  if (dtype == "fp64") return {dl_float, 64, 1};
  if (dtype == "fp32") return {dl_float, 32, 1};
  if (dtype == "bf16") return {dl_bfloat, 16, 1};
  if (dtype == "fp16") return {dl_float, 16, 1};
  if (dtype == "uint8") return {dl_uint, 8, 1};
  throw InvalidArgument("view: dtype is '" + dtype + "'; it is fp64, fp32, bf16, fp16 or uint8");
}

py::object view(std::uintptr_t address, std::vector<std::int64_t> shape, py::object owner, const std::string& dtype,
                int device) {
  auto made = std::make_unique<View>();
  made->shape = std::move(shape);
  made->owner = std::move(owner);
  made->tensor.dl_tensor = {.data = reinterpret_cast<void*>(address),
                            .device = device < 0 ? DLDevice{dl_cpu, 0} : DLDevice{dl_cuda, device},
                            .ndim = static_cast<std::int32_t>(made->shape.size()),
                            .dtype = dl_type(dtype),
                            .shape = made->shape.data(),
                            .strides = nullptr,
                            .byte_offset = 0};
  made->tensor.manager_ctx = made.get();
  made->tensor.deleter = destroy;
  PyObject* capsule = PyCapsule_New(&made->tensor, "dltensor", destroy_capsule);
  if (capsule == nullptr) throw py::error_already_set();
  made.release();
  return py::reinterpret_steal<py::object>(capsule);
}

/// A piece of page-locked memory of the host.
class PinnedMemory {
 public:
  explicit PinnedMemory(std::size_t bytes) : buffer_(*resource_, bytes) {}

  std::uintptr_t address() const noexcept { return reinterpret_cast<std::uintptr_t>(buffer_.data()); }

 private:
  std::unique_ptr<MemoryResource> resource_ = pinned_memory();
  Buffer buffer_;
};

}  // namespace

void register_memory(py::module_& module) {
  py::class_<PinnedMemory>(module, "PinnedMemory", "Exactly so many bytes of the host, which devices copy to and from.")
      .def(py::init<std::size_t>(), py::arg("bytes"), py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("address", &PinnedMemory::address);
  module.def(
      "view", &view, py::arg("address"), py::arg("shape"), py::arg("owner"), py::arg("dtype"), py::arg("device"),
      "A DLPack capsule of a contiguous tensor at `address`, on the GPU `device`, or the CPU if that is -1. It keeps "
      "`owner` alive.");
}

}  // namespace aliquot::python
