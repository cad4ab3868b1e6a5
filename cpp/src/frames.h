/// \file
/// What the ranks of a ControlChannel say to each other, as bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace aliquot {

enum class Kind : std::uint8_t {
  hello,      ///< secret, rank, pid: a rank joins
  welcome,    ///< all have joined
  heartbeat,  ///< the sender's progress; from rank 0, everybody's
  fault,      ///< lost rank, text
  left,       ///< rank
  part,       ///< name, timeout in ms, payload: to rank 0
  gathered,   ///< name, rank, payload: from rank 0
  refused,    ///< name, lost rank + 1, text: an all_gather has failed
  stop,       ///< somebody wants to stop: to rank 0
  count,      ///< rank 0 asks how often should_stop was called
  counted,    ///< number
  stop_at,    ///< number
  told,       ///< whom it is for, name, text: to rank 0; from it, who says so
};

/// Bytes of the body of a frame between ranks: a payload and what is around it.
inline constexpr std::size_t longest_body = (std::size_t{64} << 20) + (std::size_t{64} << 10);

struct Frame {
  Kind kind;
  std::string body;
};

/// Takes frames out of a stream of bytes. Holds no more than was added.
class FrameReader {
 public:
  /// \param longest  bytes of a body
  explicit FrameReader(std::size_t longest) : longest_(longest) {}

  void allow(std::size_t longest) { longest_ = longest; }
  void add(std::span<const char> bytes) { bytes_.append(bytes.data(), bytes.size()); }
  /// The next frame, if all of it is there. \throws CommunicatorError if it can't be one
  std::optional<Frame> next();

 private:
  std::size_t longest_;
  std::string bytes_;
  std::size_t begin_ = 0;
};

/// Takes a body apart. \throws CommunicatorError if it has not what is asked for
class BodyReader {
 public:
  explicit BodyReader(std::string_view body) : rest_(body) {}

  std::uint64_t number();
  std::string text();
  bool empty() const { return rest_.empty(); }

 private:
  std::string_view take(std::size_t bytes);

  std::string_view rest_;
};

void append(std::string& body, std::uint64_t number);
void append(std::string& body, std::string_view text);
std::string to_bytes(const Frame& frame);

template <typename... Parts>
Frame make_frame(Kind kind, const Parts&... parts) {
  Frame frame{kind, {}};
  (append(frame.body, parts), ...);
  return frame;
}

}  // namespace aliquot
