#include "frames.h"

#include <array>

#include "aliquot/error.h"

namespace aliquot {
namespace {

// A frame: the length of its body in 4 bytes, its kind in one, its body. All numbers are little-endian.
constexpr std::size_t length_bytes = 4;
constexpr std::size_t head_bytes = length_bytes + 1;

void append_number(std::string& bytes, std::uint64_t number, std::size_t width) {
  for (std::size_t i = 0; i < width; ++i) bytes.push_back(static_cast<char>(number >> (8 * i)));
}

std::uint64_t number_in(std::string_view bytes) {
  std::uint64_t number = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    number |= std::uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
  }
  return number;
}

}  // namespace

void append(std::string& body, std::uint64_t number) { append_number(body, number, sizeof number); }

void append(std::string& body, std::string_view text) {
  append(body, std::uint64_t{text.size()});
  body.append(text);
}

std::string to_bytes(const Frame& frame) {
  std::string bytes;
  bytes.reserve(head_bytes + frame.body.size());
  append_number(bytes, frame.body.size(), length_bytes);
  bytes.push_back(static_cast<char>(frame.kind));
  bytes.append(frame.body);
  return bytes;
}

std::optional<Frame> FrameReader::next() {
  const std::string_view rest = std::string_view(bytes_).substr(begin_);
  if (rest.size() < head_bytes) return {};
  const std::uint64_t length = number_in(rest.substr(0, length_bytes));
  const auto kind = static_cast<unsigned char>(rest[length_bytes]);
  if (length > longest_ || kind > static_cast<unsigned char>(Kind::told)) {
    throw CommunicatorError("what came is no frame: kind " + std::to_string(kind) + ", " + std::to_string(length) +
                            " bytes, of " + std::to_string(longest_) + " at most");
  }
  if (rest.size() - head_bytes < length) return {};
  Frame frame{static_cast<Kind>(kind), std::string(rest.substr(head_bytes, length))};
  begin_ += head_bytes + length;
  if (begin_ >= bytes_.size() / 2) {
    bytes_.erase(0, begin_);
    begin_ = 0;
  }
  return frame;
}

std::uint64_t BodyReader::number() { return number_in(take(sizeof(std::uint64_t))); }

std::string BodyReader::text() { return std::string(take(number())); }

std::string_view BodyReader::take(std::size_t bytes) {
  if (bytes > rest_.size()) throw CommunicatorError("a frame ends before its content");
  const std::string_view taken = rest_.substr(0, bytes);
  rest_.remove_prefix(bytes);
  return taken;
}

}  // namespace aliquot
