/// \file
/// The ways to compute a CRC32C. Between calls a `state` is the checksum with all bits inverted, as the polynomial's
/// arithmetic wants it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace aliquot::cpu {

/// The polynomial 0x1edc6f41, its bits in reverse order, as the least significant bit comes first.
inline constexpr std::uint32_t castagnoli = 0x82f63b78;

/// table[k][b]: what the byte b does to the state when k zero bytes follow it.
using CrcTable = std::array<std::array<std::uint32_t, 256>, 8>;
extern const CrcTable crc_table;

/// Eight bytes at a time by table. The oracle. (Kounavis and Berry, "A Systematic Approach to Building High Performance
/// Software-based CRC Generators", 2005)
std::uint32_t crc32c_by_table(std::span<const std::byte> data, std::uint32_t state);

/// Whether this build knows this processor's instructions for CRC32C, and the processor has them.
bool has_crc32c_instructions() noexcept;

/// Needs has_crc32c_instructions().
std::uint32_t crc32c_by_instruction(std::span<const std::byte> data, std::uint32_t state);

}  // namespace aliquot::cpu
