// One instruction takes three cycles but a new one can start in each, so three stretches of the data are taken side by
// side. A state moves past a stretch of zeros by a table, and with that the three become one: the checksum is linear.
#include <cstring>

#include "cpu/crc32c.h"

#if defined(__x86_64__)
#include <nmmintrin.h>
#define ALIQUOT_CRC_TARGET __attribute__((target("sse4.2")))
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <sys/auxv.h>
#define ALIQUOT_CRC_TARGET __attribute__((target("+crc")))
#else
#define ALIQUOT_CRC_TARGET
#endif

namespace aliquot::cpu {
namespace {

#if defined(__x86_64__)
bool asked_processor() noexcept { return __builtin_cpu_supports("sse4.2") != 0; }
ALIQUOT_CRC_TARGET inline std::uint64_t take_word(std::uint64_t state, std::uint64_t word) {
  return _mm_crc32_u64(state, word);
}
ALIQUOT_CRC_TARGET inline std::uint32_t take_byte(std::uint32_t state, std::uint8_t byte) {
  return _mm_crc32_u8(state, byte);
}
#elif defined(__aarch64__)
bool asked_processor() noexcept { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
ALIQUOT_CRC_TARGET inline std::uint64_t take_word(std::uint64_t state, std::uint64_t word) {
  return __crc32cd(static_cast<std::uint32_t>(state), word);
}
ALIQUOT_CRC_TARGET inline std::uint32_t take_byte(std::uint32_t state, std::uint8_t byte) {
  return __crc32cb(state, byte);
}
#else
bool asked_processor() noexcept { return false; }
std::uint64_t take_word(std::uint64_t state, std::uint64_t) { return state; }
std::uint32_t take_byte(std::uint32_t state, std::uint8_t) { return state; }
#endif

constexpr std::size_t stretch = 4096;

/// past_stretch[k][b]: the byte b at place k of a state, after a stretch of zero bytes.
using ShiftTable = std::array<std::array<std::uint32_t, 256>, 4>;

ShiftTable make_shift_table() {
  const std::array<std::byte, stretch> zeros{};
  ShiftTable table;
  for (std::uint32_t place = 0; place < 4; ++place) {
    for (std::uint32_t byte = 0; byte < 256; ++byte) table[place][byte] = crc32c_by_table(zeros, byte << (8 * place));
  }
  return table;
}

std::uint64_t past_stretch(const ShiftTable& table, std::uint64_t state) {
  return table[0][state & 0xff] ^ table[1][(state >> 8) & 0xff] ^ table[2][(state >> 16) & 0xff] ^
         table[3][(state >> 24) & 0xff];
}

inline std::uint64_t word_at(const std::byte* data) {
  std::uint64_t word;
  std::memcpy(&word, data, sizeof word);
  return word;
}

ALIQUOT_CRC_TARGET std::uint64_t take_three_stretches(const ShiftTable& table, const std::byte* data,
                                                      std::uint64_t state) {
  std::uint64_t second = 0, third = 0;
  for (std::size_t i = 0; i < stretch; i += 8) {
    state = take_word(state, word_at(data + i));
    second = take_word(second, word_at(data + stretch + i));
    third = take_word(third, word_at(data + 2 * stretch + i));
  }
  return past_stretch(table, past_stretch(table, state) ^ second) ^ third;
}

ALIQUOT_CRC_TARGET std::uint32_t take(const ShiftTable& table, std::span<const std::byte> data, std::uint64_t state) {
  for (; data.size() >= 3 * stretch; data = data.subspan(3 * stretch)) {
    state = take_three_stretches(table, data.data(), state);
  }
  for (; data.size() >= 8; data = data.subspan(8)) state = take_word(state, word_at(data.data()));
  auto last = static_cast<std::uint32_t>(state);
  for (const std::byte byte : data) last = take_byte(last, static_cast<std::uint8_t>(byte));
  return last;
}

}  // namespace

bool has_crc32c_instructions() noexcept { return asked_processor(); }

std::uint32_t crc32c_by_instruction(std::span<const std::byte> data, std::uint32_t state) {
  static const ShiftTable table = make_shift_table();
  return take(table, data, state);
}

}  // namespace aliquot::cpu
