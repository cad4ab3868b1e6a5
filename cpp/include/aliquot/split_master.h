/// \file
/// An fp32 master weight as a bf16 parameter and 16 more bits: together they are the master, exactly, so a parameter
/// costs 4 bytes and not 6.
#pragma once

#include <bit>
#include <cstdint>
#include <span>

namespace aliquot {

struct SplitMaster {
  std::uint16_t high = 0;  ///< the bits of the bf16 parameter: the nearest one, ties away from zero
  std::uint16_t low = 0;   ///< the master's lower 16 bits

  friend bool operator==(const SplitMaster&, const SplitMaster&) = default;
};

/// The bits of a master, rounded so that the upper ones are those of the parameter.
constexpr std::uint32_t rounded_bits(float master) { return std::bit_cast<std::uint32_t>(master) + 0x8000U; }

/// Arithmetic is modulo 2^32, so this is one to one for all bits, NaN and the largest numbers included.
constexpr SplitMaster split_master(float master) {
  return {static_cast<std::uint16_t>(rounded_bits(master) >> 16),
          static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(master) & 0xFFFFU)};
}

constexpr float join_master(SplitMaster halves) {
  const auto beyond_high = static_cast<std::int16_t>(halves.low);  // less than nothing where that was rounded up
  return std::bit_cast<float>((std::uint32_t{halves.high} << 16) + static_cast<std::uint32_t>(beyond_high));
}

// The same for arrays on the host, of masters.size() elements.

void split_masters(std::span<const float> masters, std::uint16_t* high, std::uint16_t* low);
void join_masters(const std::uint16_t* high, const std::uint16_t* low, std::span<float> masters);

}  // namespace aliquot
