/// \file
/// The host's half of a watched transport.
#pragma once

#include "aliquot/communicator.h"
#include "watch.h"

namespace aliquot {

/// Moves host memory through `control`, and says every call to `watch`: so a rank that waits here for one that is busy
/// with another collective on the device is found out. Behind a barrier all ranks have made the same calls so far.
class WatchedHost final : public Communicator {
 public:
  /// \param device  the device's half: what it was given to launch comes first
  WatchedHost(Communicator& control, Watch& watch, Communicator& device)
      : Communicator(control.rank(), control.world_size(), control.timeout(), control.names()), control_(control),
        watch_(watch), device_(device) {}

  std::string_view name() const noexcept override { return control_.name(); }
  bool one_sided() const noexcept override { return false; }

  void all_gather(const Tag& tag, std::span<const std::byte> part, std::byte* whole, Stream stream) override {
    say("host all_gather", tag, part.size());
    control_.all_gather(tag, part, whole, stream);
  }
  void reduce_scatter(const Tag& tag, const float* whole, std::span<float> part, Stream stream) override {
    say("host reduce", tag, part.size());
    control_.reduce_scatter(tag, whole, part, stream);
  }
  void all_reduce(const Tag& tag, std::span<float> data, Stream stream) override {
    say("host all_reduce", tag, data.size());
    control_.all_reduce(tag, data, stream);
  }
  void broadcast(const Tag& tag, std::span<std::byte> data, int root, Stream stream) override {
    say("host broadcast", tag, data.size(), root);
    control_.broadcast(tag, data, root, stream);
  }
  void all_to_all(const Tag& tag, const std::byte* input, std::byte* output, std::size_t piece_bytes,
                  Stream stream) override {
    say("host all_to_all", tag, piece_bytes);
    control_.all_to_all(tag, input, output, piece_bytes, stream);
  }
  // Of no concern to other ranks than the two, who compare their tags themselves.
  void send(const Tag& tag, std::span<const std::byte> data, int to, Stream stream) override {
    control_.send(tag, data, to, stream);
  }
  void receive(const Tag& tag, std::span<std::byte> data, int from, Stream stream) override {
    control_.receive(tag, data, from, stream);
  }
  void barrier(const Tag& tag) override {
    say("barrier", tag, 0);
    watch_.require_agreement(tag);
  }
  void require_intact() override { control_.require_intact(); }
  void abort(std::string_view reason) noexcept override { control_.abort(reason); }

 private:
  void say(std::string_view collective, const Tag& tag, std::uint64_t size, int root = -1) {
    device_.await(every_launch);
    watch_.say(collective, tag, size, root);
  }

  Communicator& control_;
  Watch& watch_;
  Communicator& device_;
};

}  // namespace aliquot
