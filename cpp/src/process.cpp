#include "process.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "aliquot/error.h"

namespace aliquot {
namespace {

std::string host_name() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name[0] == '\0' ? "unnamed" : name.data();
}

std::string boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  return file >> id ? id : "unknown";
}

std::string pid_namespace_id() {
  std::array<char, 64> link{};
  return readlink("/proc/self/ns/pid", link.data(), link.size() - 1) > 0 ? link.data() : "unknown";
}

}  // namespace

ProcessIdentity ProcessIdentity::of_this_process() {
  return {host_name(), boot_id(), pid_namespace_id(), geteuid(), getpid()};
}

std::string ProcessIdentity::to_text() const {
  std::ostringstream text;
  text << host << ' ' << boot << ' ' << pid_namespace << ' ' << user << ' ' << pid;
  return text.str();
}

ProcessIdentity ProcessIdentity::from_text(const std::string& text) {
  ProcessIdentity identity;
  std::istringstream words(text);
  words >> identity.host >> identity.boot >> identity.pid_namespace >> identity.user >> identity.pid;
  if (!words) throw CommunicatorError("the store holds '" + text + "' where a rank's host and process should be");
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
