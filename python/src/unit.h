/// \file
/// A unit of a sharded model, as passes through the model see it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "tensors.h"

namespace aliquot::python {

/// When its parameters are ordinary tensors, and what autograd may read of them: docs/design.md, "What autograd may
/// still read". Attributes that Python sees are described in _core.pyi.
class Unit {
 public:
  Unit(std::shared_ptr<const Tensors> tensors, std::size_t index, py::tuple params, py::object dtype, bool trainable);

  /// Makes the parameters ordinary ones, while they are gathered.
  void open();
  /// Undoes open(); the last one puts the guard back.
  void close();
  /// Undoes the open() of a backward, if there was one.
  void close_backward();
  /// Lets autograd read the parameters while they are gathered, and only then.
  void mark();

  /// From here on written() tells the first parameter that was written to, until the last close(). Does nothing where
  /// the unit was open before.
  void watch_writes();
  /// Of a unit that the next close() closes.
  std::optional<std::size_t> written() const;

  /// Where the gradients lie that autograd left on the parameters: empty if one is missing, none if one can't be taken
  /// as it is.
  std::optional<Gradients> addresses_of_gradients() const;
  py::list gradients() const { return tensors_->gradients(params); }
  void drop_gradients();

  /// Its parameters are where its forward saw them, or were when this backward used them.
  bool was_gathered() const { return seen_in_backward || held || private_copies > 0 || kept_gradients; }

  template <typename Act>
  void each(const Act& act) {
    act(params);
    act(dtype);
  }

  std::size_t index;
  py::tuple params;
  py::object dtype;
  bool trainable;
  std::uintptr_t address = 0;
  int private_copies = 0;
  int open_count = 0;
  int expected = 0;
  bool open_in_backward = false;
  bool seen_in_backward = false;
  bool kept_gradients = false;
  bool held = false;
  bool overwritten = false;

 private:
  std::int64_t shift();

  std::shared_ptr<const Tensors> tensors_;
  bool is_complex_;
  Versions versions_;       // of the parameters, when watch_writes() was called
  std::int64_t added_ = 0;  // what is in the versions of other than changes
};

}  // namespace aliquot::python
