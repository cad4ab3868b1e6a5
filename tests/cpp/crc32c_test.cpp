// The checksum of a checkpoint's chunks.
#include "aliquot/crc32c.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string_view>
#include <vector>

#include "cpu/crc32c.h"

namespace aliquot {
namespace {

using Bytes = std::vector<std::byte>;
using Update = std::uint32_t (*)(std::span<const std::byte>, std::uint32_t);

Bytes random_bytes(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  Bytes bytes(count);
  std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<std::byte>(random()); });
  return bytes;
}

/// Bit by bit, as the polynomial is divided.
std::uint32_t by_division(std::span<const std::byte> data, std::uint32_t state) {
  for (const std::byte byte : data) {
    state ^= static_cast<std::uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) state = (state >> 1) ^ ((state & 1) != 0 ? cpu::castagnoli : 0);
  }
  return state;
}

std::vector<Update> ways() {
  std::vector<Update> ways = {cpu::crc32c_by_table};
  if (cpu::has_crc32c_instructions()) ways.push_back(cpu::crc32c_by_instruction);
  return ways;
}

TEST(Crc32c, IsThatOfRfc3720) {
  Bytes ascending(32), descending(32);
  for (std::size_t i = 0; i < 32; ++i) ascending[i] = descending[31 - i] = static_cast<std::byte>(i);
  Bytes read_command(48);
  const std::pair<std::size_t, int> set[] = {{0, 0x01},  {1, 0xc0},  {16, 0x14}, {22, 0x04},
                                             {27, 0x14}, {31, 0x18}, {32, 0x28}, {40, 0x02}};
  for (const auto& [place, value] : set) read_command[place] = static_cast<std::byte>(value);
  for (const Update update : ways()) {
    const auto checksum = [&](const Bytes& data) { return ~update(data, ~0U); };
    EXPECT_EQ(checksum(Bytes(32, std::byte{0})), 0x8a9136aa);
    EXPECT_EQ(checksum(Bytes(32, std::byte{0xff})), 0x62a8ab43);
    EXPECT_EQ(checksum(ascending), 0x46dd794e);
    EXPECT_EQ(checksum(descending), 0x113fdb5c);
    EXPECT_EQ(checksum(read_command), 0xd9963a56);
  }
}

TEST(Crc32c, OfTheDigitsAndOfNothing) {
  const std::string_view digits = "123456789";
  EXPECT_EQ(crc32c(std::as_bytes(std::span(digits))), 0xe3069283);
  EXPECT_EQ(crc32c({}), 0U);
  EXPECT_EQ(crc32c({}, 0xe3069283), 0xe3069283);
}

TEST(Crc32c, EveryWayGivesTheSameAtEverySizeAndAlignment) {
  const Bytes data = random_bytes(600, 1);
  for (const Update update : ways()) {
    for (std::size_t begin = 0; begin < 16; ++begin) {
      for (std::size_t size = 0; begin + size <= data.size(); size += begin == 0 ? 1 : 7) {
        const auto piece = std::span(data).subspan(begin, size);
        ASSERT_EQ(update(piece, 0x12345678), by_division(piece, 0x12345678)) << begin << ", " << size;
      }
    }
  }
}

TEST(Crc32c, EveryWayGivesTheSameAroundStretchesOf4KiB) {
  const Bytes data = random_bytes(100'000, 2);
  for (const Update update : ways()) {
    for (std::size_t stretch = 4096; stretch < 90'000; stretch += 4096) {
      for (const std::size_t size : {stretch - 1, stretch, stretch + 1, stretch + 9}) {
        const auto piece = std::span(data).subspan(stretch % 13, size);
        ASSERT_EQ(update(piece, 0xfedcba98), by_division(piece, 0xfedcba98)) << size;
      }
    }
  }
}

TEST(Crc32c, OfPiecesIsThatOfTheWhole) {
  const Bytes data = random_bytes(40'000, 3);
  const std::uint32_t whole = crc32c(data);
  for (std::size_t split = 0; split <= data.size(); split += split < 100 ? 1 : 997) {
    const auto all = std::span(data);
    ASSERT_EQ(crc32c(all.subspan(split), crc32c(all.first(split))), whole) << split;
  }
}

TEST(Crc32c, FindsEveryFlippedBit) {
  Bytes data = random_bytes(1000, 4);
  const std::uint32_t whole = crc32c(data);
  for (std::size_t bit = 0; bit < 8 * data.size(); ++bit) {
    data[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    ASSERT_NE(crc32c(data), whole) << bit;
    data[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
  }
}

}  // namespace
}  // namespace aliquot
