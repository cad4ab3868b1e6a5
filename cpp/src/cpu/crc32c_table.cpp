#include "cpu/crc32c.h"

namespace aliquot::cpu {
namespace {

constexpr std::uint32_t after_byte(std::uint32_t state) {
  for (int bit = 0; bit < 8; ++bit) state = (state >> 1) ^ ((state & 1) != 0 ? castagnoli : 0);
  return state;
}

constexpr CrcTable make_table() {
  CrcTable table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t state = byte;
    for (auto& row : table) row[byte] = state = after_byte(state);
  }
  return table;
}

std::uint32_t byte_of(std::uint64_t word, std::size_t number) {
  return static_cast<std::uint32_t>(word >> (8 * number)) & 0xff;
}

/// The first byte is the lowest, on every processor.
std::uint64_t word_at(const std::byte* data) {
  std::uint64_t word = 0;
  for (int i = 0; i < 8; ++i) word |= static_cast<std::uint64_t>(data[i]) << (8 * i);
  return word;
}

}  // namespace

constexpr CrcTable crc_table = make_table();

std::uint32_t crc32c_by_table(std::span<const std::byte> data, std::uint32_t state) {
  for (; data.size() >= 8; data = data.subspan(8)) {
    const std::uint64_t word = word_at(data.data()) ^ state;
    state = 0;
    for (std::size_t i = 0; i < 8; ++i) state ^= crc_table[7 - i][byte_of(word, i)];
  }
  for (const std::byte byte : data)
    state = (state >> 8) ^ crc_table[0][(state ^ static_cast<std::uint32_t>(byte)) & 0xff];
  return state;
}

}  // namespace aliquot::cpu
