#include "aliquot/crc32c.h"

#include "cpu/crc32c.h"

namespace aliquot {

std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t seed) {
  static const auto update = cpu::has_crc32c_instructions() ? cpu::crc32c_by_instruction : cpu::crc32c_by_table;
  return ~update(data, ~seed);
}

}  // namespace aliquot
