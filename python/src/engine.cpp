#include "aliquot/engine.h"

#include <pybind11/stl.h>

#include <cstdlib>
#include <string_view>

#include "dtypes.h"
#include "register.h"
#include "roles.h"

namespace aliquot::python {
namespace {

using Address = std::uintptr_t;
using Addresses = std::vector<Address>;

Address address_of(const void* pointer) { return reinterpret_cast<Address>(pointer); }

Stream stream_at(Address handle) { return {reinterpret_cast<void*>(handle)}; }

Gradients gradients_at(const Addresses& addresses) {
  Gradients gradients;
  gradients.reserve(addresses.size());
  for (const Address address : addresses) gradients.push_back(reinterpret_cast<const void*>(address));
  return gradients;
}

void finish_backward(Engine& engine, const std::vector<std::pair<std::size_t, Addresses>>& left, Address stream) {
  Left gradients;
  for (const auto& [unit, addresses] : left) gradients.emplace_back(unit, gradients_at(addresses));
  engine.finish_backward(gradients, stream_at(stream));
}

using PartTuple = std::tuple<std::size_t, std::size_t, std::size_t, Address>;

std::vector<PartTuple> tuples(const std::vector<Engine::Part>& parts) {
  std::vector<PartTuple> made;
  for (const Engine::Part& part : parts) made.emplace_back(part.param, part.begin, part.numel, address_of(part.data));
  return made;
}

using StateTuple = std::tuple<std::size_t, std::size_t, std::size_t, Address, Address>;

std::vector<StateTuple> states(const std::vector<Engine::Part>& parts) {
  std::vector<StateTuple> made;
  for (const Engine::Part& part : parts) {
    made.emplace_back(part.param, part.begin, part.numel, address_of(part.data), address_of(part.scales));
  }
  return made;
}

const char* master_form(const Engine& engine, std::size_t unit) {
  if (!engine.store().holds(unit, Role::master)) return nullptr;
  return engine.store().master_form() == MasterForm::low16 ? "low16" : "fp32";
}

std::tuple<std::uint64_t, std::uint64_t, std::uint64_t> step_counts(const Engine& engine) {
  const StepCounts counts = engine.step_counts();
  return {counts.steps, counts.skipped, counts.skipped_in_a_row};
}

/// Memory of torch's allocator. `take(bytes, stream)` gives an address, `give_back(address)` takes it.
TransientMemory torch_memory(py::object take, py::object give_back) {
  const auto held = std::make_shared<std::pair<py::object, py::object>>(std::move(take), std::move(give_back));
  return [held](std::size_t bytes, Stream stream) {
    const py::gil_scoped_acquire acquire;
    const auto address = held->first(bytes, address_of(stream.handle)).cast<Address>();
    return std::shared_ptr<std::byte>(reinterpret_cast<std::byte*>(address), [held](std::byte* memory) {
      if (Py_IsInitialized() == 0) return;
      const py::gil_scoped_acquire again;
      held->second(address_of(memory));
    });
  };
}

/// An engine and the memory that it lies in.
struct Housed {
  Housed(std::unique_ptr<MemoryResource> memory, std::vector<UnitSpec> units, Communicator& communicator,
         const EngineOptions& options)
      : memory(std::move(memory)),
        engine(std::move(units), communicator, this->memory ? *this->memory : host_memory(), options) {}
  std::unique_ptr<MemoryResource> memory;
  Engine engine;
};

/// Experiments, off unless their variable is 1: what a benchmark compares, and no part of the interface.
bool asked_for(const char* experiment) {
  const char* const value = std::getenv(experiment);
  return value != nullptr && std::string_view(value) == "1";
}

/// \param device  index of a GPU, or -1 for the CPU
std::shared_ptr<Engine> make_engine(std::vector<UnitSpec> units, Communicator& communicator, int stage,
                                    std::size_t slots, std::size_t ahead_bytes, bool poison, int device,
                                    bool fp32_master, const std::string& gradients,
                                    std::optional<std::pair<py::object, py::object>> transient,
                                    Communicator* replicas) {
  EngineOptions options;
  options.replicas = replicas;
  options.stage = Stage(stage);
  options.gatherer.slots = slots;
  options.gatherer.ahead_bytes = ahead_bytes;
  options.gatherer.poison = poison;
  options.register_memory = asked_for("ALIQUOT_NCCL_WINDOWS");
  options.hide_step = asked_for("ALIQUOT_HIDDEN_STEP");
  options.store.master = fp32_master ? MasterForm::fp32 : MasterForm::low16;
  options.store.gradients = dtype_named(gradients);
  if (transient) options.store.transient = torch_memory(std::move(transient->first), std::move(transient->second));
  const py::gil_scoped_release release;
  std::unique_ptr<MemoryResource> memory;
  if (device >= 0) memory = planned_memory(units, communicator, options, {Device::Type::cuda, device});
  const auto housed = std::make_shared<Housed>(std::move(memory), std::move(units), communicator, options);
  return {housed, &housed->engine};
}

}  // namespace

void register_engine(py::module_& module) {
  const auto released = py::call_guard<py::gil_scoped_release>();
  py::class_<Engine, std::shared_ptr<Engine>>(module, "Engine", "One rank of a sharded model; see aliquot/engine.h.")
      .def(py::init(&make_engine), py::arg("units"), py::arg("communicator"), py::kw_only(), py::arg("stage"),
           py::arg("slots"), py::arg("ahead_bytes"), py::arg("poison"), py::arg("device"), py::arg("fp32_master"),
           py::arg("gradients"), py::arg("transient"), py::arg("replicas"), py::keep_alive<1, 3>(),
           py::keep_alive<1, 12>())
      .def(
          "pre_forward",
          [](Engine& self, std::size_t unit, Address stream) {
            return address_of(self.pre_forward(unit, stream_at(stream)));
          },
          released)
      .def(
          "post_forward",
          [](Engine& self, std::size_t unit, Address stream) { self.post_forward(unit, stream_at(stream)); }, released)
      .def("expect_backward", &Engine::expect_backward)
      .def("finish_forward", &Engine::finish_forward)
      .def(
          "pre_backward",
          [](Engine& self, std::size_t unit, Address stream) {
            return address_of(self.pre_backward(unit, stream_at(stream)));
          },
          released)
      .def(
          "post_backward",
          [](Engine& self, std::size_t unit, const Addresses& gradients, Address stream) {
            return self.post_backward(unit, gradients_at(gradients), stream_at(stream));
          },
          released)
      .def("in_the_way", &Engine::in_the_way)
      .def("hold", &Engine::hold)
      .def("forget", &Engine::forget)
      .def("leave_backward", [](Engine& self, Address stream) { self.leave_backward(stream_at(stream)); })
      .def("finish_backward", &finish_backward, released)
      .def("set_groups", &Engine::set_groups, released)
      .def("regroup", &Engine::regroup, released)
      .def(
          "values_to_step", [](const Engine& self, std::size_t unit) { return tuples(self.values_to_step(unit)); },
          "(param, begin, numel, address) of the fp32 values that this rank steps.")
      .def(
          "begin_update",
          [](Engine& self, std::optional<double> max_norm, Address stream) {
            return self.begin_update(max_norm, stream_at(stream));
          },
          py::arg("max_norm"), py::arg("stream"), released)
      .def(
          "gradients_to_step",
          [](const Engine& self, std::size_t unit) { return tuples(self.gradients_to_step(unit)); },
          "The same of the gradients, address 0 where there is none.")
      .def(
          "end_update", [](Engine& self, Address stream) { self.end_update(stream_at(stream)); }, released)
      .def(
          "step",
          [](Engine& self, const std::vector<Rule>& rules, std::optional<double> max_norm, Address stream) {
            return self.step(rules, max_norm, stream_at(stream));
          },
          py::arg("rules"), py::arg("max_norm"), py::arg("stream"), released)
      .def(
          "device_state", [](const Engine& self) { return address_of(self.device_state()); },
          "Where the last step's norm (fp64) lies on the device, and behind it the clip factor (fp32) and whether the "
          "step was skipped (uint32); 0 on CPUs.")
      .def(
          "set_loss_scale",
          [](Engine& self, const LossScale& scale, Address stream) { self.set_loss_scale(scale, stream_at(stream)); },
          released)
      .def(
          "update_loss_scale",
          [](Engine& self, const ScaleRule& rule, Address stream) { self.update_loss_scale(rule, stream_at(stream)); },
          released)
      .def(
          "loss_scale", [](const Engine& self, Address stream) { return self.loss_scale(stream_at(stream)); }, released)
      .def(
          "device_loss_scale", [](const Engine& self) { return address_of(self.device_loss_scale()); },
          "Where the loss scale (fp32) lies on the device; 0 on CPUs.")
      .def(
          "gradient_report", [](Engine& self, Address stream) { return self.gradient_report(stream_at(stream)); },
          released)
      .def(
          "scale_gradients",
          [](Engine& self, float factor, Address stream) { self.scale_gradients(factor, stream_at(stream)); }, released)
      .def(
          "square_sums", [](Engine& self, Address stream) { return self.square_sums(stream_at(stream)); }, released,
          "Of the gradients of all ranks, by unit and parameter.")
      .def(
          "scale_gradient",
          [](Engine& self, std::size_t unit, std::size_t param, float factor, Address stream) {
            self.scale_gradient(unit, param, factor, stream_at(stream));
          },
          released)
      .def("clear_gradients", [](Engine& self, Address stream) { self.clear_gradients(stream_at(stream)); })
      .def(
          "clear_gradient",
          [](Engine& self, std::size_t unit, std::size_t param, Address stream) {
            self.clear_gradient(unit, param, stream_at(stream));
          },
          released)
      .def("has_gradient", &Engine::has_gradient)
      .def("whole_gradient", [](Engine& self, std::size_t unit) { return address_of(self.whole_gradient(unit)); })
      .def_property_readonly("uses_slots", &Engine::uses_slots, "Whether later units overwrite gathered ones.")
      .def(
          "reset", [](Engine& self, Address stream) { self.reset(stream_at(stream)); }, released)
      .def("unfreeze", &Engine::unfreeze, released)
      .def("begin_write", &Engine::begin_write, released)
      .def(
          "write",
          [](Engine& self, std::size_t unit, std::size_t param, Address values, Address stream) {
            self.write(unit, param, reinterpret_cast<const float*>(values), stream_at(stream));
          },
          released)
      .def(
          "end_write", [](Engine& self, Address stream) { self.end_write(stream_at(stream)); }, released)
      .def(
          "read",
          [](Engine& self, std::size_t unit, Address whole, Address stream) {
            self.read(unit, reinterpret_cast<void*>(whole), stream_at(stream));
          },
          released)
      .def("master_form", &master_form,
           "low16, fp32 or None: where the fp32 values of a unit are beside its parameters.")
      .def(
          "parts_to_save",
          [](const Engine& self, std::size_t unit, const std::string& role) {
            return tuples(self.parts_to_save(unit, role_named(role)));
          },
          "(param, begin, numel, address) of what this rank saves.")
      .def(
          "parts_to_load",
          [](const Engine& self, std::size_t unit, const std::string& role) {
            return tuples(self.parts_to_load(unit, role_named(role)));
          },
          "The same of what it has to be given again.")
      .def(
          "states_to_save",
          [](const Engine& self, std::size_t unit, const std::string& role) {
            return states(self.parts_to_save(unit, role_named(role)));
          },
          "The same of a state, and where the scales of its codes lie, 0 where it is fp32.")
      .def(
          "states_to_load",
          [](const Engine& self, std::size_t unit, const std::string& role) {
            return states(self.parts_to_load(unit, role_named(role)));
          },
          "The same, of what this rank has to be given again.")
      .def("holds_gradients", &Engine::holds_gradients)
      .def(
          "restore_gradients",
          [](Engine& self, std::size_t unit, const std::vector<bool>& present, Address stream) {
            self.restore_gradients(unit, present, stream_at(stream));
          },
          released)
      .def(
          "share_gradients", [](Engine& self, Address stream) { self.share_gradients(stream_at(stream)); }, released)
      .def(
          "param_steps", [](const Engine& self, Address stream) { return self.param_steps(stream_at(stream)); },
          released)
      .def(
          "set_param_steps",
          [](Engine& self, ParamSteps steps, Address stream) {
            self.set_param_steps(std::move(steps), stream_at(stream));
          },
          released)
      .def("step_counts", &step_counts, "Steps, skipped steps, and how many of those in a row.")
      .def(
          "set_step_counts",
          [](Engine& self, std::uint64_t steps, std::uint64_t skipped, std::uint64_t in_a_row, Address stream) {
            self.set_step_counts({steps, skipped, in_a_row}, stream_at(stream));
          },
          released)
      .def(
          "offset",
          [](const Engine& self, std::size_t unit, std::size_t param) { return self.layout(unit).param(param).begin; },
          "Where a parameter starts in the flat unit, in elements.")
      .def(
          "numel", [](const Engine& self, std::size_t unit) { return self.layout(unit).numel(); },
          "Elements of the flat unit, padding included.")
      .def("statistics", &Engine::statistics, released)
      .def("renew", &Engine::renew, released)
      .def(
          "begin_capture", [](Engine& self, Address stream) { self.begin_capture(stream_at(stream)); }, released)
      .def(
          "end_capture", [](Engine& self, Address stream) { self.end_capture(stream_at(stream)); }, released)
      .def(
          "begin_replay",
          [](Engine& self, const std::vector<Rule>& rules, Address stream) {
            self.begin_replay(rules, stream_at(stream));
          },
          released)
      .def(
          "end_replay", [](Engine& self, Address stream) { return self.end_replay(stream_at(stream)); }, released)
      .def("profile", &Engine::profile, py::arg("timeline"), "The timeline must stay until profile(None).");
}

}  // namespace aliquot::python
