/// \file
/// Every error that Aliquot raises. A message says what was wrong, where (rank, unit, key) and what to do.
#pragma once

#include <stdexcept>
#include <string>

namespace aliquot {

/// Base of all errors of this library; `aliquot.Error` in Python.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// An argument, a configuration or an order of calls that cannot be right.
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

/// Memory that could not be had; the message gives the bytes asked for.
class OutOfMemory : public Error {
 public:
  using Error::Error;
};

/// A device runtime (CUDA) reported an error.
class DeviceError : public Error {
 public:
  using Error::Error;
};

/// Ranks disagree, a wait passed its deadline, or a rank aborted.
class CommunicatorError : public Error {
 public:
  using Error::Error;
};

/// A rank is dead. `rank()` says which.
class PeerLost : public CommunicatorError {
 public:
  PeerLost(int rank, const std::string& message) : CommunicatorError(message), rank_(rank) {}
  int rank() const noexcept { return rank_; }

 private:
  int rank_;
};

/// A checkpoint that cannot be written or must not be read.
class CheckpointError : public Error {
 public:
  using Error::Error;
};

}  // namespace aliquot
