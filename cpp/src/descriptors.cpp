#include "descriptors.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <thread>

#include "aliquot/error.h"

namespace aliquot {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr auto between_looks = 100ms;

/// Where a rank is sent descriptors: an address in the kernel's abstract namespace, so no file system knows it.
struct Mailbox {
  sockaddr_un address{};
  socklen_t length = 0;
  pid_t owner = 0;
};

struct Letter {
  int from = 0;
  pid_t sender = 0;  ///< as the kernel has it
  Descriptor file;
};

[[noreturn]] void refuse(const char* call) {
  throw CommunicatorError(std::string("the ranks' open files can't be exchanged over a Unix socket: ") + call + ": " +
                          std::strerror(errno));
}

Descriptor open_socket() {
  Descriptor made(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!made) refuse("socket");
  const int yes = 1;
  if (setsockopt(made.number(), SOL_SOCKET, SO_PASSCRED, &yes, sizeof yes) != 0) refuse("setsockopt");
  return made;
}

// Bound to an address that says nothing but its family, a socket gets a name of its own from the kernel: unix(7).
Mailbox open_mailbox(const Descriptor& socket) {
  Mailbox mine;
  mine.address.sun_family = AF_UNIX;
  mine.owner = getpid();
  auto* const address = reinterpret_cast<sockaddr*>(&mine.address);
  if (bind(socket.number(), address, sizeof(sa_family_t)) != 0) refuse("bind");
  mine.length = sizeof mine.address;
  if (getsockname(socket.number(), address, &mine.length) != 0) refuse("getsockname");
  return mine;
}

/// What surrounds a letter of one rank number and one descriptor. Points into itself.
struct Wrapping {
  Wrapping() {
    message.msg_iov = &content;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
  }
  Wrapping(const Wrapping&) = delete;
  Wrapping& operator=(const Wrapping&) = delete;

  int rank = 0;
  iovec content{&rank, sizeof rank};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(ucred))> control{};
  msghdr message{};
};

/// False where the receiver has no room at present.
bool try_to_send(const Descriptor& socket, const Mailbox& to, int from, int file) {
  Wrapping wrapping;
  wrapping.rank = from;
  wrapping.message.msg_name = const_cast<sockaddr_un*>(&to.address);
  wrapping.message.msg_namelen = to.length;
  wrapping.message.msg_controllen = CMSG_SPACE(sizeof file);
  cmsghdr* const part = CMSG_FIRSTHDR(&wrapping.message);
  part->cmsg_level = SOL_SOCKET;
  part->cmsg_type = SCM_RIGHTS;
  part->cmsg_len = CMSG_LEN(sizeof file);
  std::memcpy(CMSG_DATA(part), &file, sizeof file);
  if (sendmsg(socket.number(), &wrapping.message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return true;
  if (errno == EAGAIN || errno == EINTR) return false;
  refuse("sendmsg");
}

/// None where there is no letter at present, or something that is none.
std::optional<Letter> try_to_receive(const Descriptor& socket) {
  Wrapping wrapping;
  const auto bytes = recvmsg(socket.number(), &wrapping.message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (bytes < 0 && errno != EAGAIN && errno != EINTR) refuse("recvmsg");
  if (bytes < 0) return {};
  Letter letter{wrapping.rank, 0, {}};
  for (cmsghdr* part = CMSG_FIRSTHDR(&wrapping.message); part != nullptr; part = CMSG_NXTHDR(&wrapping.message, part)) {
    if (part->cmsg_level != SOL_SOCKET) continue;
    if (part->cmsg_type == SCM_CREDENTIALS) {
      ucred credentials{};
      std::memcpy(&credentials, CMSG_DATA(part), sizeof credentials);
      letter.sender = credentials.pid;
    } else if (part->cmsg_type == SCM_RIGHTS) {
      for (std::size_t at = 0; CMSG_LEN(at + sizeof(int)) <= part->cmsg_len; at += sizeof(int)) {
        int file = 0;
        std::memcpy(&file, CMSG_DATA(part) + at, sizeof file);
        letter.file = Descriptor(file);
      }
    }
  }
  const bool lost = (wrapping.message.msg_flags & MSG_CTRUNC) != 0;
  if (bytes != sizeof wrapping.rank || !(letter.file || lost)) return {};
  return letter;
}

/// The exchange of one rank.
class Exchange {
 public:
  explicit Exchange(Communicator& host)
      : host_(host), deadline_(Clock::now() + host.timeout()), socket_(open_socket()),
        mailboxes_(static_cast<std::size_t>(host.world_size())), received_(mailboxes_.size()) {
    const Mailbox mine = open_mailbox(socket_);
    host.all_gather({"exchange", "mailboxes"}, std::as_bytes(std::span(&mine, 1)),
                    std::as_writable_bytes(std::span(mailboxes_)).data());
  }

  // Who sends waits for room, and who has sent receives: no rank has more letters under way than one. So if all waited
  // for room, no letter would be under way that could take it.
  std::vector<Descriptor> run(const Descriptor& file) && {
    const auto ranks = mailboxes_.size(), me = static_cast<std::size_t>(host_.rank());
    for (std::size_t step = 1; step < ranks; ++step) {
      send(mailboxes_[(me + step) % ranks], file);
      receive();
    }
    return std::move(received_);
  }

 private:
  void send(const Mailbox& to, const Descriptor& file) {
    while (!try_to_send(socket_, to, host_.rank(), file.number())) {
      require_hope();
      std::this_thread::sleep_for(1ms);
    }
  }

  void receive() {
    while (true) {
      pollfd watched{.fd = socket_.number(), .events = POLLIN, .revents = 0};
      if (poll(&watched, 1, static_cast<int>(between_looks / 1ms)) <= 0) {
        require_hope();
        continue;
      }
      std::optional<Letter> letter = try_to_receive(socket_);
      if (!letter || !is_due(*letter)) continue;  // anybody may write to the address
      if (!letter->file) {
        throw CommunicatorError("rank " + std::to_string(host_.rank()) +
                                " has too many open files to take one of a peer's: raise the limit (ulimit -n)");
      }
      received_[static_cast<std::size_t>(letter->from)] = std::move(letter->file);
      return;
    }
  }

  bool is_due(const Letter& letter) const {
    if (letter.from < 0 || letter.from >= host_.world_size() || letter.from == host_.rank()) return false;
    const auto from = static_cast<std::size_t>(letter.from);
    return letter.sender == mailboxes_[from].owner && !received_[from];
  }

  void require_hope() const {
    host_.require_intact();
    if (Clock::now() > deadline_) {
      throw CommunicatorError("rank " + std::to_string(host_.rank()) + " waited for the open files of its peers for " +
                              std::to_string(host_.timeout().count()) + " ms (the communicator's timeout)");
    }
  }

  Communicator& host_;
  Clock::time_point deadline_;
  Descriptor socket_;
  std::vector<Mailbox> mailboxes_;
  std::vector<Descriptor> received_;
};

}  // namespace

Descriptor::~Descriptor() {
  if (number_ != none) close(number_);
}

std::vector<Descriptor> exchange_descriptors(Communicator& host, const Descriptor& file) {
  try {
    return Exchange(host).run(file);
  } catch (const std::exception& error) {
    host.abort(error.what());
    throw;
  }
}

}  // namespace aliquot
