/// \file
/// CRC32C, the checksum of iSCSI (RFC 3720, section B.4): what tells whether a chunk of a checkpoint is as it was
/// written. It finds every burst of up to 32 bits, and misses one in 2^32 of other damages; it is no protection
/// against whoever wants to deceive.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace aliquot {

/// \param seed  the checksum of what comes before `data`, so that pieces give the checksum of the whole
std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t seed = 0);

}  // namespace aliquot
