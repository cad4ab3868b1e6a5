#include "aliquot/memory_resource.h"

#include <sys/mman.h>

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "aliquot/error.h"

namespace aliquot {
namespace {

constexpr std::size_t page = 4096;
constexpr std::size_t huge_page = std::size_t{2} << 20;

constexpr std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

/// Pages of their own, which the kernel hands out zeroed on first touch, begin on a huge page; smaller pieces come from
/// the heap. `bytes` alone says which, so deallocate needs no record.
constexpr bool has_own_pages(std::size_t bytes) { return bytes >= huge_page; }

void* map_pages(std::size_t bytes) {
  const std::size_t mapped = round_up(bytes, page);
  void* const start = mmap(nullptr, mapped + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) return nullptr;
  const std::size_t before = -reinterpret_cast<std::uintptr_t>(start) % huge_page;
  std::byte* const pages = static_cast<std::byte*>(start) + before;
  if (before != 0) munmap(start, before);
  munmap(pages + mapped, huge_page - before);
  madvise(pages, mapped, MADV_HUGEPAGE);  // only a hint: without huge pages it works as well, slower
  return pages;
}

void* zeroed_heap(std::size_t bytes, std::size_t alignment) {
  void* const pointer = std::aligned_alloc(alignment, round_up(bytes, alignment));
  if (pointer != nullptr) std::memset(pointer, 0, bytes);
  return pointer;
}

class HostMemory final : public MemoryResource {
 public:
  void* allocate(std::size_t bytes, std::size_t alignment, Stream) override {
    if (!std::has_single_bit(alignment) || alignment > page) {
      throw InvalidArgument("host memory: alignment is " + std::to_string(alignment) +
                            "; give a power of two, at most " + std::to_string(page));
    }
    void* pointer = nullptr;
    if (bytes <= PTRDIFF_MAX - huge_page - page) {
      pointer = has_own_pages(bytes) ? map_pages(bytes) : zeroed_heap(bytes, alignment);
    }
    if (pointer == nullptr) {
      throw OutOfMemory("host memory: " + std::to_string(bytes) +
                        " bytes could not be had; use more ranks, a higher "
                        "stage or a smaller model");
    }
    return pointer;
  }

  void deallocate(void* pointer, std::size_t bytes, Stream) noexcept override {
    if (has_own_pages(bytes)) {
      munmap(pointer, round_up(bytes, page));
    } else {
      std::free(pointer);
    }
  }

  Device device() const noexcept override { return {}; }
};

}  // namespace

MemoryResource& host_memory() {
  static auto& memory = *new HostMemory;  // never destroyed: buffers with static storage may outlive it
  return memory;
}

}  // namespace aliquot
