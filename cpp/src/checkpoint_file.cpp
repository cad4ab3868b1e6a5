#include "checkpoint_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "aliquot/error.h"

namespace aliquot {
namespace {

/// The result of a system call, which is called again as long as a signal interrupts it.
template <typename Call>
auto uninterrupted(const Call& call) {
  for (;;) {
    const auto result = call();
    if (result >= 0 || errno != EINTR) return result;
  }
}

constexpr std::uint64_t direct_block = 4096;  // what nearly every disk takes past the cache

void require_no_zero(const std::string& path) {
  if (path.find('\0') != std::string::npos) throw CheckpointError("a path with a zero byte in it: " + path);
}

}  // namespace

CheckpointFile::CheckpointFile(std::string path, const char* operation, int flags) : path_(std::move(path)) {
  require_no_zero(path_);
  descriptor_ = Descriptor(
      uninterrupted([&] { return ::open(path_.c_str(), flags | O_NOFOLLOW | O_CLOEXEC, S_IRUSR | S_IWUSR); }));
  if (!descriptor_) fail(operation, errno);
}

CheckpointFile CheckpointFile::create(const std::string& path) {
  CheckpointFile file(path, "create", O_WRONLY | O_CREAT | O_EXCL);
  file.direct_ =
      Descriptor(uninterrupted([&] { return ::open(path.c_str(), O_WRONLY | O_DIRECT | O_NOFOLLOW | O_CLOEXEC); }));
  return file;
}

CheckpointFile CheckpointFile::open(const std::string& path) {
  CheckpointFile file(path, "open", O_RDONLY | O_NONBLOCK);  // a pipe would wait for its writer
  struct stat status{};
  if (fstat(file.descriptor_.number(), &status) != 0) file.fail("stat", errno);
  if (!S_ISREG(status.st_mode)) throw CheckpointError(path + " is not a regular file");
  return file;
}

std::uint64_t CheckpointFile::size() const {
  struct stat status{};
  if (fstat(descriptor_.number(), &status) != 0) fail("stat", errno);
  return static_cast<std::uint64_t>(status.st_size);
}

void CheckpointFile::reserve(std::uint64_t bytes) {
  const auto size = static_cast<off_t>(bytes);
  if (uninterrupted([&] { return fallocate(descriptor_.number(), 0, 0, size); }) == 0) return;
  if (errno != EOPNOTSUPP && errno != ENOSYS) fail("reserve " + std::to_string(bytes) + " bytes for", errno);
}

ssize_t CheckpointFile::write_some(std::span<const std::byte> data, std::uint64_t offset) {
  const auto write_to = [&](const Descriptor& descriptor) {
    return uninterrupted(
        [&] { return pwrite(descriptor.number(), data.data(), data.size(), static_cast<off_t>(offset)); });
  };
  if (direct_ && offset % direct_block == 0 && data.size() % direct_block == 0) {
    const ssize_t written = write_to(direct_);
    if (written >= 0 || errno != EINVAL) return written;  // else a disk of larger blocks
  }
  return write_to(descriptor_);
}

void CheckpointFile::write(std::span<const std::byte> data, std::uint64_t offset) {
  while (!data.empty()) {
    const ssize_t written = write_some(data, offset);
    if (written <= 0) fail("write at byte " + std::to_string(offset) + " of", written < 0 ? errno : EIO);
    data = data.subspan(static_cast<std::size_t>(written));
    offset += static_cast<std::uint64_t>(written);
  }
}

void CheckpointFile::read(std::span<std::byte> into, std::uint64_t offset) const {
  while (!into.empty()) {
    const ssize_t got = uninterrupted(
        [&] { return pread(descriptor_.number(), into.data(), into.size(), static_cast<off_t>(offset)); });
    if (got < 0) fail("read at byte " + std::to_string(offset) + " of", errno);
    if (got == 0) throw CheckpointError(path_ + " ends at byte " + std::to_string(offset) + " while it is being read");
    into = into.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
}

void CheckpointFile::forget(std::uint64_t offset, std::uint64_t bytes) const noexcept {
  posix_fadvise(descriptor_.number(), static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_DONTNEED);
}

void CheckpointFile::sync() {
  if (uninterrupted([&] { return fsync(descriptor_.number()); }) != 0) fail("fsync", errno);
}

void CheckpointFile::remove() noexcept { unlink(path_.c_str()); }

void CheckpointFile::fail(const std::string& operation, int error) const {
  throw CheckpointError("can't " + operation + " " + path_ + ": " + std::strerror(error));
}

}  // namespace aliquot
