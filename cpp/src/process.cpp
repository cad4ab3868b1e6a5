#include "process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <vector>

#include "aliquot/error.h"

namespace aliquot {
namespace {

std::string host_name() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name[0] == '\0' ? "unnamed" : name.data();
}

std::string boot_id() {
  std::array<char, 64> id{};
  const int file = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
  const bool known = file >= 0 && read(file, id.data(), id.size() - 1) > 0;
  if (file >= 0) close(file);
  return known ? std::string(id.data(), std::strcspn(id.data(), "\n")) : "unknown";
}

std::string pid_namespace_id() {
  std::array<char, 64> link{};
  return readlink("/proc/self/ns/pid", link.data(), link.size() - 1) > 0 ? link.data() : "unknown";
}

template <typename Number>
bool parse(const std::string& word, Number& number) {
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
  return error == std::errc{} && end == word.data() + word.size();
}

}  // namespace

ProcessIdentity ProcessIdentity::of_this_process() {
  return {host_name(), boot_id(), pid_namespace_id(), geteuid(), getpid()};
}

std::string ProcessIdentity::to_text() const {
  return host + ' ' + boot + ' ' + pid_namespace + ' ' + std::to_string(user) + ' ' + std::to_string(pid);
}

ProcessIdentity ProcessIdentity::from_text(const std::string& text) {
  std::vector<std::string> words;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(' ', begin), text.size());
    words.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  ProcessIdentity identity;
  if (words.size() != 5 || !parse(words[3], identity.user) || !parse(words[4], identity.pid)) {
    throw CommunicatorError("the store holds '" + text + "' where a rank's host and process should be");
  }
  identity.host = words[0];
  identity.boot = words[1];
  identity.pid_namespace = words[2];
  return identity;
}

Process::Process(pid_t pid) : pid_(pid), descriptor_(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))) {
  if (descriptor_ < 0 && errno != ESRCH) {
    throw CommunicatorError("cannot watch process " + std::to_string(pid) +
                            ": pidfd_open (Linux 5.3 or later): " + std::strerror(errno));
  }
}

Process::~Process() {
  if (descriptor_ >= 0) close(descriptor_);
}

bool Process::ended(std::chrono::milliseconds patience) const noexcept {
  if (descriptor_ < 0) return true;
  pollfd watched{.fd = descriptor_, .events = POLLIN, .revents = 0};
  return poll(&watched, 1, static_cast<int>(patience.count())) == 1;
}

}  // namespace aliquot
