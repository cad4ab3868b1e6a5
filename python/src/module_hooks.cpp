#include <pybind11/stl.h>

#include <algorithm>
#include <deque>
#include <utility>
#include <vector>

#include "collected.h"
#include "gradient_hook.h"
#include "passes.h"
#include "register.h"
#include "walk.h"

namespace aliquot::python {
namespace {

/// A call of a module's forward that is under way.
struct Call {
  std::vector<Unit*> gathered;
  bool checks_saved = false;  ///< what it saves is checked when it is used
};

/// What comes before and after the forward and the backward of a module that needs `units`: one call for each. What is
/// rare is done by methods of the class that Python derives of this one.
class ModuleHooks {
 public:
  /// \param passes  a Passes
  /// \param input_dtype  what floating-point inputs are cast to, or None
  /// \param saved_hooks  saved_hooks(false) tells the hooks on tensors that autograd saves, or None
  ModuleHooks(py::object passes, const py::list& units, Walk walk, py::object input_dtype, py::object saved_hooks,
              GradientHook on_outputs, GradientHook on_inputs)
      : passes_(passes.cast<Passes*>()), passes_object_(std::move(passes)), walk_(std::move(walk)),
        input_dtype_(std::move(input_dtype)), saved_hooks_(std::move(saved_hooks)), on_outputs_(std::move(on_outputs)),
        on_inputs_(std::move(on_inputs)) {
    for (const py::handle unit : units) {
      unit_objects_.push_back(py::reinterpret_borrow<py::object>(unit));
      units_.push_back(unit.cast<Unit*>());
    }
  }

  /// Before a forward. Returns what it is called with, or None if that is what is given.
  py::object open(const py::object& module, const py::object& args, const py::object& kwargs) {
    const Running running(passes_->forward_clock);
    Call& entered = calls_.emplace_back();
    passes_->enter_forward(module);
    const Moment now = passes_->now();
    open_units(entered, now);
    if (passes_->uses_slots()) entered.checks_saved = check_saved();
    return change_inputs(args, kwargs, !units_.empty() && now.builds_graph);
  }

  /// After a forward, also if it raised.
  void close(const py::object& output) {
    const Running running(passes_->forward_clock);
    const Moment now = passes_->now();
    close_units(now);
    if (!now.builds_graph) return;
    const auto watch = [&](const py::object& tensor) {
      if (needs_gradient(tensor)) on_outputs_.add(tensor);
      return tensor;
    };
    walk_(watch, output);
    if (!walk_.knows(output)) self().attr("require_clear")(output);
  }

  void pre_backward(const py::object&) { passes_->pre_backward(units_); }
  void post_backward(const py::object&) { passes_->post_backward(units_); }

  template <typename Act>
  void each(const Act& act) {
    for (py::object* held : {&passes_object_, &input_dtype_, &saved_hooks_}) act(*held);
    on_outputs_.each(act);
    on_inputs_.each(act);
    for (py::object& unit : unit_objects_) act(unit);
  }

 private:
  void open_units(Call& entered, const Moment& now) {
    for (Unit* unit : units_) {
      if (unit->private_copies > 0 && !now.builds_graph) continue;  // aliquot.gathered has given this rank a copy
      passes_->gather(*unit, now);
      entered.gathered.push_back(unit);
    }
  }

  void close_units(const Moment& now) {
    Call ended;
    if (!calls_.empty()) {
      ended = std::move(calls_.back());
      calls_.pop_back();
    }
    if (ended.checks_saved) self().attr("leave_saved")();
    try {
      std::for_each(ended.gathered.rbegin(), ended.gathered.rend(),
                    [&](Unit* unit) { passes_->give_back(*unit, now); });
    } catch (...) {
      passes_->leave_forward();
      throw;
    }
    passes_->leave_forward();
  }

  bool check_saved() {
    const py::object hooks = saved_hooks_(false);
    if (!hooks.is_none()) self().attr("check_saved")(hooks);
    return !hooks.is_none();
  }

  /// Casts inputs. Those that need gradients are replaced by views if `watched`, whose hooks run before those of the
  /// tensors' makers.
  py::object change_inputs(const py::object& args, const py::object& kwargs, bool watched) {
    std::vector<py::object> views;
    const auto change = [&](const py::object& tensor) {
      static const Name view_as("view_as");
      py::object input = cast(tensor);
      if (!watched || !needs_gradient(input)) return input;
      return views.emplace_back(call(input, view_as, input));
    };
    if (!watched && input_dtype_.is_none()) return py::none();
    const py::object new_args = walk_(change, args), new_kwargs = walk_(change, kwargs);
    if (watched) watch(views);
    if (new_args.is(args) && new_kwargs.is(kwargs)) return py::none();
    return py::make_tuple(new_args, new_kwargs);
  }

  py::object cast(const py::object& tensor) const {
    static const Name dtype("dtype"), is_floating_point("is_floating_point"), to("to");
    if (input_dtype_.is_none() || get(tensor, dtype).is(input_dtype_)) return tensor;
    return call(tensor, is_floating_point).ptr() == Py_True ? call(tensor, to, input_dtype_) : tensor;
  }

  /// Has the end of the backward told: by the last of the views, or else by the parameters.
  void watch(const std::vector<py::object>& views) {
    if (views.size() == 1) {
      on_inputs_.add(views[0]);
    } else if (!views.empty()) {
      self().attr("watch_all")(views);
    }
    watch_params(views.empty());
  }

  /// Parameters can tell of one call only.
  void watch_params(bool wanted) {
    wanted = wanted && std::none_of(units_.begin(), units_.end(), [](Unit* unit) { return unit->expected > 1; });
    if (wanted) {
      self().attr("watch_params")();
    } else if (watches_params_) {
      self().attr("ignore_params")();
    }
    watches_params_ = wanted;
  }

  py::object self() { return py::cast(this, py::return_value_policy::reference); }

  Passes* passes_;
  py::object passes_object_;
  std::vector<py::object> unit_objects_;
  std::vector<Unit*> units_;
  Walk walk_;
  py::object input_dtype_, saved_hooks_;
  GradientHook on_outputs_, on_inputs_;
  std::deque<Call> calls_;
  bool watches_params_ = false;
};

}  // namespace

void register_module_hooks(py::module_& module) {
  py::class_<ModuleHooks>(module, "ModuleHooks",
                          "What comes before and after the forward and the backward of a module that needs `units`.",
                          collected<ModuleHooks>())
      .def(py::init([](py::object passes, const py::list& units, const Walk& walk, py::object input_dtype,
                       py::object saved_hooks, py::object on_outputs, py::object on_inputs, py::object beside) {
             return ModuleHooks(std::move(passes), units, walk, std::move(input_dtype), std::move(saved_hooks),
                                {std::move(on_outputs), beside}, {std::move(on_inputs), beside});
           }),
           py::kw_only(), py::arg("passes"), py::arg("units"), py::arg("walk"), py::arg("input_dtype"),
           py::arg("saved_hooks"), py::arg("on_outputs"), py::arg("on_inputs"), py::arg("beside"))
      .def("open", &ModuleHooks::open)
      .def("close", &ModuleHooks::close)
      .def("pre_backward", &ModuleHooks::pre_backward)
      .def("post_backward", &ModuleHooks::post_backward);
}

}  // namespace aliquot::python
