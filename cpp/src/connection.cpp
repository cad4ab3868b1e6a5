#include "connection.h"

#include <sys/socket.h>

#include <array>
#include <cerrno>

namespace aliquot {
namespace {

constexpr std::size_t piece_bytes = 16 << 10;
// One rank that sends much does not keep the others waiting.
constexpr int pieces_at_a_time = 64;

bool later(int error) { return error == EAGAIN || error == EWOULDBLOCK || error == EINTR; }

}  // namespace

bool Connection::receive() {
  std::array<char, piece_bytes> piece;
  for (int i = 0; i < pieces_at_a_time; ++i) {
    const ssize_t got = recv(socket_.number(), piece.data(), piece.size(), 0);
    if (got < 0) return later(errno);
    if (got == 0) return false;
    reader_.add({piece.data(), static_cast<std::size_t>(got)});
    if (static_cast<std::size_t>(got) < piece.size()) return true;
  }
  return true;
}

bool Connection::flush() {
  while (has_unsent()) {
    const ssize_t sent = ::send(socket_.number(), unsent_.data() + sent_, unsent_.size() - sent_, MSG_NOSIGNAL);
    if (sent < 0) return later(errno);
    sent_ += static_cast<std::size_t>(sent);
  }
  unsent_.clear();
  sent_ = 0;
  return true;
}

}  // namespace aliquot
