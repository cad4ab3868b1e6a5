#include <string>
#include "aliquot/device.h"
#include "aliquot/parallel.h"
#include "aliquot/version.h"
#include "register.h"

PYBIND11_MODULE(_core, module) {
  using namespace aliquot;
  using namespace aliquot::python;
  module.doc() = "The C++ core of Aliquot. Knows nothing of torch: memory goes in as addresses and out as DLPack.";
  module.attr("__version__") = std::string(version);
  register_errors(module);
  register_control(module);
  register_communicators(module);
  register_process_group(module);
  register_memory(module);
  register_timeline(module);
  register_rules(module);
  register_engine_values(module);
  register_engine(module);
  register_split_master(module);
  register_quantization(module);
  register_tensors(module);
  register_walk(module);
  register_clock(module);
  register_unit(module);
  register_passes(module);
  register_module_hooks(module);
  register_checkpoint(module);
  module.def("thread_count", &thread_count, "Threads of this process that the kernels share.");
  module.def("set_thread_count", &set_thread_count, py::arg("count"));
  module.def("built_with_cuda", &built_with_cuda);
  module.def("cuda_device_count", &cuda_device_count);
}
