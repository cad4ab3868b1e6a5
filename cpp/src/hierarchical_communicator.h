/// \file
/// The transport `hierarchical`: one transport inside a host, another between hosts.
#pragma once

#include <concepts>
#include <memory>
#include <string_view>

#include "aliquot/communicator.h"
#include "aliquot/memory_resource.h"
#include "scratch.h"

namespace aliquot {

/// docs/design.md, "Several hosts". What is launched, the thread of `between` does, for both.
class HierarchicalCommunicator final : public Communicator {
 public:
  HierarchicalCommunicator(Communicator& inside, Communicator& between, Device device);

  std::string_view name() const noexcept override { return "hierarchical"; }
  bool one_sided() const noexcept override { return false; }
  bool sums_inside() const noexcept override { return true; }
  Communicator& host() noexcept override { return host_ ? *host_ : *this; }

  void all_gather(const Tag& tag, std::span<const std::byte> part, std::byte* whole, Stream stream) override;
  void reduce_scatter(const Tag& tag, const float* whole, std::span<float> part, Stream stream) override;
  void all_reduce(const Tag& tag, std::span<float> data, Stream stream) override;
  void broadcast(const Tag& tag, std::span<std::byte> data, int root, Stream stream) override;
  void all_to_all(const Tag& tag, const std::byte* input, std::byte* output, std::size_t piece_bytes,
                  Stream stream) override;
  /// Between ranks of one host, or of the same place in theirs; elsewhere InvalidArgument.
  void send(const Tag& tag, std::span<const std::byte> data, int to, Stream stream) override;
  void receive(const Tag& tag, std::span<std::byte> data, int from, Stream stream) override;
  void barrier(const Tag& tag) override;

  std::uint64_t launch(std::function<void()> work) override { return launching_.launch(std::move(work)); }
  void await(std::uint64_t launch) override { launching_.await(launch); }
  void abort(std::string_view reason) noexcept override;
  void require_intact() override;
  void leave() noexcept override;

 private:
  /// A communicator that joins this rank with another, and what that one is called there.
  struct Link {
    Communicator& communicator;
    int peer;
  };

  /// \param launching  the one of the two, or beside the two where this moves host memory beside a device's
  HierarchicalCommunicator(Communicator& inside, Communicator& between, Communicator& launching, Device device);

  std::size_t here() const { return static_cast<std::size_t>(inside_.world_size()); }
  std::size_t hosts() const { return static_cast<std::size_t>(between_.world_size()); }
  Link link_to(int rank) const;
  void broadcast_piece(const Tag& tag, std::span<std::byte> data, int root, Stream stream);
  void end_world_on_error(const std::invocable auto& call);

  Communicator& inside_;
  Communicator& between_;
  Communicator& launching_;
  Device device_;
  std::unique_ptr<HierarchicalCommunicator> host_;
  Scratch of_gathers_, of_sums_;
};

}  // namespace aliquot
