/// \file
/// Updates beside the next forward: docs/design.md, "The hidden step".
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <utility>

#include "aliquot/memory_resource.h"
#include "aliquot/streams.h"

namespace aliquot {

/// The stream that updates are given to, unit by unit, and the gradients that they still read.
class HiddenStep {
 public:
  explicit HiddenStep(Device device);
  HiddenStep(const HiddenStep&) = delete;
  HiddenStep& operator=(const HiddenStep&) = delete;
  /// The host waits for what is under way.
  ~HiddenStep();

  /// Where updates go, which come behind what `stream` was given so far.
  Stream begin(Stream stream);
  /// True from begin() until a stream or the host waits for them.
  bool under_way() const { return under_way_; }

  /// Keeps what the update of a unit reads until let_go, or a wait for all updates, of the stream of begin(): that took
  /// this memory, and may take it again.
  void keep(std::size_t unit, std::shared_ptr<std::byte> gradient) { kept_[unit] = std::move(gradient); }
  /// `stream` is behind the unit's update.
  void let_go(std::size_t unit, Stream stream) {
    if (stream.handle == taker_.handle) kept_.erase(unit);
  }

  /// `stream` goes on when all updates are done.
  void await(Stream stream);
  /// The host does.
  void await();
  /// The host waits, and no event was ever recorded.
  void renew();

 private:
  Device device_;
  OwnedStream stream_;
  Event decided_;
  Event done_;
  Stream taker_;  ///< of the memory that is kept
  bool under_way_ = false;
  std::map<std::size_t, std::shared_ptr<std::byte>> kept_;
};

}  // namespace aliquot
