/// \file
/// How the ranks of a world tell each other that they live, and why they stop.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "aliquot/communicator.h"

namespace aliquot {

struct ControlOptions {
  /// A name or number of rank 0's host, on the interface at which it listens. Loopback where rank 0 has no such.
  std::string address = "127.0.0.1";
  /// A rank that has said nothing for so long is frozen. It says something ten times in this time, or each second.
  std::chrono::milliseconds patience = std::chrono::seconds(10);
  /// How long to wait until all ranks have joined.
  std::chrono::milliseconds timeout = std::chrono::minutes(10);
};

/// A star of TCP connections through rank 0, served on each rank by a thread of its own, which no interpreter lock and
/// no busy main thread holds up. See docs/design.md, "The control channel".
///
/// The first *fault* ends the world for all ranks: a rank that is gone (its connection ended before it left), one that
/// is frozen, or one that announced why it gives up. Every rank then has the same PeerLost.
/// Safe from any thread. A fork of the process has the object, but is not the rank: it must not use it.
class ControlChannel {
 public:
  /// `lost` is the rank that the fault is about.
  using FaultHandler = std::function<void(int lost, const std::string& text)>;

  /// Collective over `store`, whose keys it uses below `name`; who can read the store can join.
  /// \throws CommunicatorError if rank 0 can't be reached; PeerLost, also of a rank that has not joined in time
  ControlChannel(const KeyValueStore& store, const std::string& name, int rank, int world_size,
                 const ControlOptions& options = {});
  ControlChannel(const ControlChannel&) = delete;
  ControlChannel& operator=(const ControlChannel&) = delete;
  ~ControlChannel();

  int rank() const noexcept;
  int world_size() const noexcept;

  /// Throws the fault, if there was one.
  void require_intact() const;
  /// Waits for a fault, or for a rank to leave, and throws PeerLost of it. Returns if there is none after `patience`.
  void look_for_lost(std::chrono::milliseconds patience) const;
  /// Calls `handler` on the channel's thread when there is a fault; at once if there was one. It must not throw; if it
  /// has not returned after 5 seconds, the process ends (see Watchdog). Keep the result for as long as it may be
  /// called.
  [[nodiscard]] std::shared_ptr<void> on_fault(FaultHandler handler);

  /// What each rank gave under this name, by rank; the lengths may differ. Every rank calls it. Several may be under
  /// way at a time, under different names.
  /// \throws PeerLost if a rank is lost, or has left without giving; CommunicatorError when `timeout` is over, naming
  /// the ranks that gave nothing: go on under another name then
  std::vector<std::string> all_gather(const std::string& name, std::string_view payload,
                                      std::chrono::milliseconds timeout);
  static constexpr std::size_t longest_payload = std::size_t{64} << 20;

  /// Called on the channel's thread, one call at a time. It must not throw.
  using Listener = std::function<void(int from, const std::string& text)>;
  /// Calls `listener` with what ranks tell this one under `name`. Keep the result for as long as it may be called.
  [[nodiscard]] std::shared_ptr<void> listen(const std::string& name, Listener listener);
  /// Tells one rank something, which comes in the order in which this one tells it. Never waits; who does not listen
  /// under that name yet, or has left, never hears of it.
  void tell(int to, const std::string& name, std::string_view text);

  /// Says to all ranks that this one gives up, and why. Returns when it is said, or after a second.
  void announce(std::string_view reason) noexcept;
  /// Says that this rank is done: its end is no fault. No call comes after it.
  void leave() noexcept;

  /// Counts what this rank has done (its steps). Never waits.
  void advance() noexcept;
  /// How far each rank had come when it said so last.
  std::vector<std::uint64_t> progress() const;

  /// Asks all ranks to stop. Never waits.
  void request_stop() noexcept;
  /// Lets SIGTERM request a stop of this channel, and a second one end the process. Does nothing, and returns false, if
  /// SIGTERM does not have its default effect in this process.
  bool stop_on_terminate();
  /// Every rank calls it again and again, at the same points of its work. True from the same call on, on all ranks,
  /// some time after any has requested a stop. Waits for other ranks only then, and briefly.
  /// \throws PeerLost
  bool should_stop();

  class Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace aliquot
