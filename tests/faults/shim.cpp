// A disk that fails when told to. Preloaded (LD_PRELOAD), it stands between a process and the calls that change or read
// files under one folder. It counts them, and at one of them kills the process, lets it fail, or does only a part. It
// can also write down what was done, for a model of what a loss of power would have left (disk.py).
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdarg>
#include <cstring>
#include <string>
#include <string_view>

namespace {

/// What happens at the chosen call, where it isn't an errno.
enum Action { nothing = 0, kill_before = -1, kill_midway = -2, do_part = -3 };

std::string folder;
bool counts_reads = false;
long chosen = 0;
std::string unsynced;  // the end of the paths whose fsync does nothing
int action = nothing;
std::atomic<long> counted = 0;
int journal = -1;

/// Keeps errno as it is for whoever looks at it after a call.
struct KeptErrno {
  int value = errno;
  ~KeptErrno() { errno = value; }
};

std::string link_target(const std::string& link) {
  const KeptErrno kept;
  std::array<char, PATH_MAX> target{};
  const long size = syscall(SYS_readlinkat, AT_FDCWD, link.c_str(), target.data(), target.size());
  return {target.data(), static_cast<std::size_t>(std::max(size, 0L))};
}

std::string path_of(int file) { return link_target("/proc/self/fd/" + std::to_string(file)); }

std::string path_of(int at, const char* path) {
  if (path == nullptr || path[0] == '/') return path == nullptr ? "" : path;
  return (at == AT_FDCWD ? link_target("/proc/self/cwd") : path_of(at)) + "/" + path;
}

bool is_ours(const std::string& path) { return !folder.empty() && (path == folder || path.starts_with(folder + "/")); }

[[noreturn]] void die() {
  syscall(SYS_kill, getpid(), SIGKILL);
  _exit(137);
}

void note(const std::string& line) {
  if (journal < 0) return;
  const KeptErrno kept;
  const std::string whole = line + "\n";
  if (syscall(SYS_write, journal, whole.data(), whole.size()) < 0) _exit(99);
}

std::string number(auto value) { return "\t" + std::to_string(value); }

/// Does `call(part)`, if the plan lets it. `part`: whether to do half of it only.
template <typename Call, typename Note>
long meet(bool reads, const std::string& path, const Call& call, const Note& done) {
  if (!is_ours(path)) return call(false);
  const int planned = reads == counts_reads && ++counted == chosen ? action : nothing;
  if (planned == kill_before) die();
  if (planned > 0) {
    errno = planned;
    return -1;
  }
  const long result = call(planned == kill_midway || planned == do_part);
  if (result >= 0) done(result);
  if (planned == kill_midway) die();
  return result;
}

template <typename Call>
long change(const char* name, const std::string& path, const Call& call) {
  return meet(false, path, [&](bool) { return call(); }, [&](long) { note(std::string(name) + "\t" + path); });
}

template <typename Call>
long move(const char* name, const std::string& from, const std::string& to, const Call& call) {
  return meet(
      false, is_ours(to) ? to : from, [&](bool) { return call(); },
      [&](long) { note(std::string(name) + "\t" + from + "\t" + to); });
}

std::size_t some(std::size_t count, bool part) { return part && count > 1 ? count / 2 : count; }

template <typename Call>
long write_at(int file, off_t offset, std::size_t count, const Call& call) {
  const std::string path = path_of(file);
  return meet(
      false, path, [&](bool part) { return call(some(count, part)); },
      [&](long done) { note("write\t" + path + number(offset) + number(done)); });
}

template <typename Call>
long read_at(int file, std::size_t count, const Call& call) {
  return meet(true, path_of(file), [&](bool part) { return call(some(count, part)); }, [](long) {});
}

off_t position(int file) {
  const KeptErrno kept;
  return syscall(SYS_lseek, file, 0, SEEK_CUR);
}

std::size_t total(const iovec* parts, int count) {
  std::size_t bytes = 0;
  for (int i = 0; i < count; ++i) bytes += parts[i].iov_len;
  return bytes;
}

bool exists(int at, const char* name) {
  const KeptErrno kept;
  return syscall(SYS_faccessat, at, name, F_OK) == 0;
}

int open_file(int at, const char* name, int flags, mode_t mode) {
  const auto call = [&] { return syscall(SYS_openat, at, name, flags, mode); };
  const std::string path = path_of(at, name);
  if ((flags & (O_CREAT | O_TRUNC)) == 0 || !is_ours(path)) return static_cast<int>(call());
  const bool is_there = exists(at, name);
  if (is_there && (flags & O_EXCL) != 0) return static_cast<int>(call());
  return static_cast<int>(change(is_there ? "truncate" : "create", path, call));
}

int allocate(int file, int mode, off_t offset, off_t bytes) {
  const std::string path = path_of(file);
  return static_cast<int>(meet(
      false, path, [&](bool) { return syscall(SYS_fallocate, file, mode, offset, bytes); },
      [&](long) { note("write\t" + path + number(offset) + number(bytes)); }));
}

}  // namespace

extern "C" {

// NOLINTBEGIN(readability-identifier-naming): names and types are those of the C library

/// \param at      which call is the chosen one, from 1; 0 for none
/// \param what    an errno, or an Action
/// \param record  a file to append to, or ""
/// \param never_synced  the end of the paths whose fsync does nothing, or ""
void plan_fault(const char* under, int of_reads, long at, int what, const char* record, const char* never_synced) {
  folder = under;
  unsynced = never_synced;
  counts_reads = of_reads != 0;
  chosen = at;
  action = what;
  counted = 0;
  if (journal >= 0) syscall(SYS_close, journal);
  journal =
      *record == '\0'
          ? -1
          : static_cast<int>(syscall(SYS_openat, AT_FDCWD, record, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
}

long counted_calls() { return counted; }

int open(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const auto mode = static_cast<mode_t>((flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(rest, int) : 0);
  va_end(rest);
  return open_file(AT_FDCWD, path, flags, mode);
}
int openat(int at, const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const auto mode = static_cast<mode_t>((flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(rest, int) : 0);
  va_end(rest);
  return open_file(at, path, flags, mode);
}

ssize_t write(int file, const void* data, size_t size) {
  return write_at(file, position(file), size, [&](std::size_t n) { return syscall(SYS_write, file, data, n); });
}
ssize_t pwrite(int file, const void* data, size_t size, off_t offset) {
  return write_at(file, offset, size, [&](std::size_t n) { return syscall(SYS_pwrite64, file, data, n, offset); });
}
ssize_t writev(int file, const iovec* parts, int count) {
  return write_at(file, position(file), total(parts, count),
                  [&](std::size_t) { return syscall(SYS_writev, file, parts, count); });
}
ssize_t read(int file, void* into, size_t size) {
  return read_at(file, size, [&](std::size_t n) { return syscall(SYS_read, file, into, n); });
}
ssize_t pread(int file, void* into, size_t size, off_t offset) {
  return read_at(file, size, [&](std::size_t n) { return syscall(SYS_pread64, file, into, n, offset); });
}

int fsync(int file) {
  const std::string path = path_of(file);
  if (!unsynced.empty() && is_ours(path) && path.ends_with(unsynced)) return 0;
  return static_cast<int>(change("fsync", path, [&] { return syscall(SYS_fsync, file); }));
}
int fdatasync(int file) { return fsync(file); }
int ftruncate(int file, off_t size) {
  return static_cast<int>(change("truncate", path_of(file), [&] { return syscall(SYS_ftruncate, file, size); }));
}
int fallocate(int file, int mode, off_t offset, off_t bytes) { return allocate(file, mode, offset, bytes); }

int mkdirat(int at, const char* path, mode_t mode) {
  return static_cast<int>(change("mkdir", path_of(at, path), [&] { return syscall(SYS_mkdirat, at, path, mode); }));
}
int mkdir(const char* path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int unlinkat(int at, const char* path, int flags) {
  return static_cast<int>(change("remove", path_of(at, path), [&] { return syscall(SYS_unlinkat, at, path, flags); }));
}
int unlink(const char* path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char* path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int renameat2(int from_at, const char* from, int to_at, const char* to, unsigned flags) {
  return static_cast<int>(move((flags & RENAME_EXCHANGE) != 0 ? "exchange" : "rename", path_of(from_at, from),
                               path_of(to_at, to),
                               [&] { return syscall(SYS_renameat2, from_at, from, to_at, to, flags); }));
}
int renameat(int from_at, const char* from, int to_at, const char* to) {
  return renameat2(from_at, from, to_at, to, 0);
}
int rename(const char* from, const char* to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int linkat(int from_at, const char* from, int to_at, const char* to, int flags) {
  return static_cast<int>(move("link", path_of(from_at, from), path_of(to_at, to),
                               [&] { return syscall(SYS_linkat, from_at, from, to_at, to, flags); }));
}
int link(const char* from, const char* to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

// The same for programs built for files of 64 bits.
int open64(const char*, int, ...) __attribute__((alias("open")));
int openat64(int, const char*, int, ...) __attribute__((alias("openat")));
ssize_t pwrite64(int, const void*, size_t, off_t) __attribute__((alias("pwrite")));
ssize_t pread64(int, void*, size_t, off_t) __attribute__((alias("pread")));
int ftruncate64(int, off_t) __attribute__((alias("ftruncate")));
int fallocate64(int, int, off_t, off_t) __attribute__((alias("fallocate")));

// NOLINTEND(readability-identifier-naming)

}  // extern "C"
