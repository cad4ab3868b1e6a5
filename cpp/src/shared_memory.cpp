#include "shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "aliquot/error.h"

namespace aliquot {
namespace {

std::mutex created_mutex;
std::map<int, std::weak_ptr<SharedMemory>>& created() {
  static std::map<int, std::weak_ptr<SharedMemory>> by_file;
  return by_file;
}

std::shared_ptr<SharedMemory> created_here(int file) {
  const std::lock_guard lock(created_mutex);
  const auto found = created().find(file);
  return found == created().end() ? nullptr : found->second.lock();
}

[[noreturn]] void throw_out_of_memory(std::size_t bytes, const char* call) {
  throw OutOfMemory("shared memory of " + std::to_string(bytes) + " bytes: " + call + ": " + std::strerror(errno));
}

}  // namespace

SharedMemory::SharedMemory(int file, std::size_t bytes) : file_(file), bytes_(bytes) {
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (mapped == MAP_FAILED) {
    close(file);
    throw_out_of_memory(bytes, "mmap");
  }
  data_ = static_cast<std::byte*>(mapped);
}

SharedMemory::~SharedMemory() {
  close_file();
  munmap(data_, bytes_);
}

void SharedMemory::close_file() noexcept {
  const std::lock_guard lock(created_mutex);
  if (file_ < 0) return;
  created().erase(file_);
  close(file_);
  file_ = -1;
}

std::shared_ptr<SharedMemory> SharedMemory::create(std::size_t bytes) {
  const int file = memfd_create("aliquot", MFD_CLOEXEC);
  if (file < 0) throw_out_of_memory(bytes, "memfd_create");
  if (ftruncate(file, static_cast<off_t>(bytes)) != 0) {
    close(file);
    throw_out_of_memory(bytes, "ftruncate");
  }
  auto memory = std::make_shared<SharedMemory>(file, bytes);
  const std::lock_guard lock(created_mutex);
  created()[file] = memory;
  return memory;
}

std::shared_ptr<SharedMemory> SharedMemory::open(pid_t creator, int file, std::size_t bytes) {
  if (creator == getpid()) {
    if (auto memory = created_here(file)) return memory;
  }
  const std::string path = "/proc/" + std::to_string(creator) + "/fd/" + std::to_string(file);
  const int opened = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (opened < 0) {
    throw CommunicatorError("cannot open the shared memory of process " + std::to_string(creator) + " (" + path +
                            "): " + std::strerror(errno) + "; it has ended, or runs as another user");
  }
  auto memory = std::make_shared<SharedMemory>(opened, bytes);
  memory->close_file();
  return memory;
}

}  // namespace aliquot
