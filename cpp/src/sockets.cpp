#include "sockets.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>
#include <utility>

#include "aliquot/error.h"

namespace aliquot {
namespace {

/// What is to be closed in a fork. Held while a file is opened, so that no fork comes between.
struct OpenFiles {
  std::mutex mutex;
  std::set<int> numbers;
};

// Never destroyed: the last thread of the process may still use it.
OpenFiles& open_files() {
  static OpenFiles& files = *[] {
    pthread_atfork([] { open_files().mutex.lock(); }, [] { open_files().mutex.unlock(); },
                   [] {
                     for (const int number : open_files().numbers) close(number);
                     open_files().mutex.unlock();
                   });
    return new OpenFiles;
  }();
  return files;
}

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

Addresses addresses_of(const Endpoint& endpoint) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(endpoint.address.c_str(), endpoint.port.c_str(), &hints, &found);
  if (error != 0) throw CommunicatorError("address '" + endpoint.address + "': " + gai_strerror(error));
  return {found, &freeaddrinfo};
}

UnsharedDescriptor open_socket(const addrinfo& address) {
  return UnsharedDescriptor(
      [&] { return socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, address.ai_protocol); });
}

// Heartbeats and verdicts are short, and are not to wait for each other.
void send_at_once(const UnsharedDescriptor& socket) {
  const int yes = 1;
  setsockopt(socket.number(), IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

UnsharedDescriptor try_to_listen(const std::string& address, int backlog) try {
  const Addresses found = addresses_of({address, "0"});
  for (const addrinfo* at = found.get(); at != nullptr; at = at->ai_next) {
    UnsharedDescriptor made = open_socket(*at);
    if (made && bind(made.number(), at->ai_addr, at->ai_addrlen) == 0 && listen(made.number(), backlog) == 0) {
      return made;
    }
  }
  return {};
} catch (const CommunicatorError&) {  // no such name
  return {};
}

// Zero, or what went wrong.
int connect_within(const UnsharedDescriptor& socket, const addrinfo& address, std::chrono::milliseconds patience) {
  if (connect(socket.number(), address.ai_addr, address.ai_addrlen) == 0) return 0;
  if (errno != EINPROGRESS) return errno;
  pollfd watched{.fd = socket.number(), .events = POLLOUT, .revents = 0};
  if (poll(&watched, 1, static_cast<int>(patience.count())) != 1) return ETIMEDOUT;
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(socket.number(), SOL_SOCKET, SO_ERROR, &error, &size);
  return error;
}

}  // namespace

UnsharedDescriptor::UnsharedDescriptor(const std::function<int()>& open) {
  const std::lock_guard lock(open_files().mutex);
  number_ = open();
  if (number_ >= 0) open_files().numbers.insert(number_);
}

UnsharedDescriptor::UnsharedDescriptor(UnsharedDescriptor&& other) noexcept
    : number_(std::exchange(other.number_, -1)) {}

UnsharedDescriptor& UnsharedDescriptor::operator=(UnsharedDescriptor&& other) noexcept {
  std::swap(number_, other.number_);
  return *this;
}

UnsharedDescriptor::~UnsharedDescriptor() {
  if (number_ < 0) return;
  const std::lock_guard lock(open_files().mutex);
  open_files().numbers.erase(number_);
  close(number_);
}

UnsharedDescriptor listen_at(const std::string& address, int backlog) {
  for (const std::string& candidate : {address, std::string("127.0.0.1"), std::string("::1")}) {
    if (UnsharedDescriptor made = try_to_listen(candidate, backlog)) return made;
  }
  throw CommunicatorError("rank 0 can't listen at '" + address + "', nor on loopback: " + std::strerror(errno));
}

Endpoint endpoint_of(const UnsharedDescriptor& listening) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  getsockname(listening.number(), reinterpret_cast<sockaddr*>(&address), &size);
  std::array<char, NI_MAXHOST> host{};
  std::array<char, NI_MAXSERV> port{};
  getnameinfo(reinterpret_cast<const sockaddr*>(&address), size, host.data(), host.size(), port.data(), port.size(),
              NI_NUMERICHOST | NI_NUMERICSERV);
  return {host.data(), port.data()};
}

UnsharedDescriptor accept_from(const UnsharedDescriptor& listening) {
  UnsharedDescriptor made([&] { return accept4(listening.number(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK); });
  if (made) send_at_once(made);
  return made;
}

UnsharedDescriptor connect_to(const Endpoint& endpoint, std::chrono::milliseconds patience) {
  const Addresses found = addresses_of(endpoint);
  UnsharedDescriptor made = open_socket(*found);
  const int error = made ? connect_within(made, *found, patience) : errno;
  if (error != 0) {
    throw CommunicatorError("rank 0 listens at " + endpoint.address + ", port " + endpoint.port +
                            ", and can't be reached: " + std::strerror(error) +
                            ". MASTER_ADDR must be an address of rank 0's host that all ranks reach");
  }
  send_at_once(made);
  return made;
}

WakeUp::WakeUp() : descriptor_([] { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }) {
  if (!descriptor_) throw CommunicatorError(std::string("eventfd: ") + std::strerror(errno));
}

void WakeUp::wake() const noexcept {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(descriptor_.number(), &one, sizeof one);
}

void WakeUp::clear() const noexcept {
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = read(descriptor_.number(), &count, sizeof count);
}

}  // namespace aliquot
