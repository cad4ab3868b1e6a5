#include <algorithm>
#include <string>

#include "aliquot/error.h"
#include "aliquot/memory_resource.h"

namespace aliquot {
namespace {

constexpr std::size_t alignment_given = 256;  // what every source of device memory gives

std::span<std::byte> take(MemoryResource& source, std::size_t bytes) {
  if (bytes == 0) return {};
  return {static_cast<std::byte*>(source.allocate(bytes, alignment_given, {})), bytes};
}

}  // namespace

DeviceArena::DeviceArena(std::unique_ptr<MemoryResource> source, std::size_t capacity)
    : source_(std::move(source)), whole_(take(*source_, capacity)) {}

DeviceArena::~DeviceArena() {
  if (!whole_.empty()) source_->deallocate(whole_.data(), whole_.size(), {});
}

void* DeviceArena::allocate(std::size_t bytes, std::size_t alignment, Stream) {
  if (alignment > alignment_given) {
    throw InvalidArgument("arena: alignment is " + std::to_string(alignment) + "; give at most " +
                          std::to_string(alignment_given));
  }
  const std::scoped_lock lock(mutex_);
  if (bytes > capacity() - used_) {
    throw OutOfMemory("arena of cuda:" + std::to_string(device().index) + ": " + std::to_string(bytes) +
                      " bytes are wanted, " + std::to_string(capacity() - used_) + " of " + std::to_string(capacity()) +
                      " are left; plan the arena with DeviceArena::planned() of every piece");
  }
  std::byte* const piece = whole_.data() + used_;
  used_ = std::min(capacity(), used_ + planned(bytes));
  return piece;
}

std::size_t DeviceArena::used() const {
  const std::scoped_lock lock(mutex_);
  return used_;
}

}  // namespace aliquot
