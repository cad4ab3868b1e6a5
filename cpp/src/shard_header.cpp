#include "shard_header.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "aliquot/error.h"

namespace aliquot {
namespace {

constexpr std::size_t alignment = 8;
constexpr std::size_t largest_json = 100'000'000;  // what readers of the format take

constexpr std::array<std::pair<std::string_view, std::uint64_t>, 16> element_sizes = {{
    {"F64", 8},
    {"I64", 8},
    {"U64", 8},
    {"C64", 8},
    {"F32", 4},
    {"I32", 4},
    {"U32", 4},
    {"F16", 2},
    {"BF16", 2},
    {"I16", 2},
    {"U16", 2},
    {"I8", 1},
    {"U8", 1},
    {"BOOL", 1},
    {"F8_E4M3", 1},
    {"F8_E5M2", 1},
}};

[[noreturn]] void refuse(const FileTensor& tensor, const std::string& why) {
  throw InvalidArgument("tensor '" + tensor.name + "' of a checkpoint file: " + why);
}

std::uint64_t element_size(const FileTensor& tensor) {
  for (const auto& [dtype, size] : element_sizes) {
    if (dtype == tensor.dtype) return size;
  }
  refuse(tensor, "the format has no dtype '" + tensor.dtype + "'");
}

void require_sound(const FileTensor& tensor) {
  if (tensor.name == "__metadata__") refuse(tensor, "the format keeps that name for itself");
  std::uint64_t bytes = element_size(tensor);
  for (const std::uint64_t extent : tensor.shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) refuse(tensor, "its shape is larger than any memory");
  }
  if (bytes == tensor.bytes()) return;
  refuse(tensor, "its shape needs " + std::to_string(bytes) + " bytes, its data has " + std::to_string(tensor.bytes()));
}

void require_different_names(std::span<const FileTensor> tensors) {
  std::unordered_set<std::string_view> names;
  for (const FileTensor& tensor : tensors) {
    if (!names.insert(tensor.name).second) refuse(tensor, "there are two of that name");
  }
}

std::vector<std::size_t> larger_elements_first(std::span<const FileTensor> tensors) {
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto place = [&](std::size_t i) { return std::pair(-static_cast<int>(element_size(tensors[i])), i); };
  std::ranges::sort(order, {}, place);
  return order;
}

std::string escaped(std::string_view text) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string result;
  for (const char c : text) {
    if (const auto code = static_cast<unsigned char>(c); code < 0x20) {
      result += std::string("\\u00") + digits[code >> 4] + digits[code & 0xf];
    } else {
      if (c == '"' || c == '\\') result += '\\';
      result += c;
    }
  }
  return result;
}

std::string joined(std::span<const std::uint64_t> numbers) {
  std::string text;
  for (const std::uint64_t number : numbers) text += (text.empty() ? "" : ",") + std::to_string(number);
  return text;
}

/// `begin`: from the end of the header.
std::string entry(const FileTensor& tensor, std::uint64_t begin) {
  const std::uint64_t range[] = {begin, begin + tensor.bytes()};
  return "\"" + escaped(tensor.name) + "\":{\"dtype\":\"" + tensor.dtype + "\",\"shape\":[" + joined(tensor.shape) +
         "],\"data_offsets\":[" + joined(range) + "]}";
}

std::string with_length(std::string json) {
  json.append((alignment - json.size() % alignment) % alignment, ' ');
  std::string length;
  for (int byte = 0; byte < 8; ++byte) length += static_cast<char>((json.size() >> (8 * byte)) & 0xff);
  return length + json;
}

}  // namespace

ShardHeader header_of(std::span<const FileTensor> tensors) {
  std::ranges::for_each(tensors, require_sound);
  require_different_names(tensors);
  ShardHeader header{.text = {}, .order = larger_elements_first(tensors), .offsets = {}, .file_bytes = 0};
  header.offsets.resize(tensors.size());
  std::string json;
  for (const std::size_t i : header.order) {
    header.offsets[i] = std::exchange(header.file_bytes, header.file_bytes + tensors[i].bytes());
    json += (json.empty() ? "{" : ",") + entry(tensors[i], header.offsets[i]);
  }
  header.text = with_length(json.empty() ? "{}" : json + "}");
  if (header.text.size() > largest_json) {
    throw InvalidArgument("a checkpoint file of " + std::to_string(tensors.size()) + " tensors: their names take " +
                          std::to_string(header.text.size()) + " bytes, and the format allows " +
                          std::to_string(largest_json));
  }
  for (std::uint64_t& offset : header.offsets) offset += header.text.size();
  header.file_bytes += header.text.size();
  return header;
}

}  // namespace aliquot
