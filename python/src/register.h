/// \file
/// The parts of the extension module; each register_*() adds its classes and functions.
#pragma once

#include <pybind11/pybind11.h>

namespace aliquot::python {

namespace py = pybind11;

void register_errors(py::module_& module);
void register_communicators(py::module_& module);
void register_control(py::module_& module);
void register_process_group(py::module_& module);
void register_memory(py::module_& module);
void register_timeline(py::module_& module);
void register_rules(py::module_& module);
void register_engine_values(py::module_& module);
void register_engine(py::module_& module);
void register_split_master(py::module_& module);
void register_quantization(py::module_& module);
void register_tensors(py::module_& module);
void register_walk(py::module_& module);
void register_unit(py::module_& module);
void register_passes(py::module_& module);
void register_module_hooks(py::module_& module);
void register_clock(py::module_& module);
void register_checkpoint(py::module_& module);

}  // namespace aliquot::python
