/// \file
/// One rank's end of a connection of a ControlChannel.
#pragma once

#include <optional>
#include <string>

#include "frames.h"
#include "sockets.h"

namespace aliquot {

/// Sends and takes frames. Never blocks.
class Connection {
 public:
  /// \param longest  bytes of a body that is taken
  Connection(UnsharedDescriptor socket, std::size_t longest) : socket_(std::move(socket)), reader_(longest) {}

  int number() const noexcept { return socket_.number(); }
  FrameReader& reader() { return reader_; }

  /// Reads what is there, or a part of that if it is much. False if the other end has closed.
  bool receive();
  /// Queues a frame; flush() sends it.
  void send(const Frame& frame) { unsent_ += to_bytes(frame); }
  /// Sends as much as the socket takes. False if the other end has closed.
  bool flush();
  bool has_unsent() const { return sent_ < unsent_.size(); }

 private:
  UnsharedDescriptor socket_;
  FrameReader reader_;
  std::string unsent_;
  std::size_t sent_ = 0;
};

}  // namespace aliquot
