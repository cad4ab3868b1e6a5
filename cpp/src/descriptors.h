/// \file
/// Open files that the ranks of one host give each other.
#pragma once

#include <utility>
#include <vector>

#include "aliquot/communicator.h"

namespace aliquot {

/// Sole owner of an open file. May be empty.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, none)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~Descriptor();

  explicit operator bool() const noexcept { return number_ != none; }
  int number() const noexcept { return number_; }

 private:
  static constexpr int none = -1;

  int number_ = none;
};

/// Every rank's `file`, by rank; the place of this rank stays empty. Collective over `host`, whose ranks are processes
/// or threads of one host and one network namespace.
/// \throws CommunicatorError; an error on one rank ends the world of all
std::vector<Descriptor> exchange_descriptors(Communicator& host, const Descriptor& file);

}  // namespace aliquot
