/// \file
/// What ranks move in tests, and what must come of it.
#pragma once

#include <cmath>
#include <cstddef>
#include <random>
#include <span>
#include <vector>

namespace aliquot::test {

inline std::vector<std::byte> bytes_of(int rank, std::size_t count) {
  std::mt19937 random(static_cast<unsigned>(rank));
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// Numbers whose sum depends on the order.
inline std::vector<float> floats_of(int rank, std::size_t count) {
  std::mt19937 random(static_cast<unsigned>(100 + rank));
  std::uniform_real_distribution<float> exponent(-20, 20);
  std::vector<float> floats(count);
  for (float& value : floats) value = std::exp2(exponent(random)) * (random() % 2 == 0 ? 1.0F : -1.0F);
  return floats;
}

inline std::vector<std::byte> as_bytes(const std::vector<float>& floats) {
  const auto bytes = std::as_bytes(std::span(floats));
  return {bytes.begin(), bytes.end()};
}

/// The same call on host memory, through the communicator that the CPU transports' tests hold to their contract.
template <typename Call>
std::vector<std::byte> on_host(std::size_t bytes, const Call& call) {
  std::vector<std::byte> result(bytes);
  call(result.data());
  return result;
}

}  // namespace aliquot::test
