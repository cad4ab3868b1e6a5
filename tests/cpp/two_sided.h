/// \file
/// A two-sided transport made of any other, where there is neither NCCL nor torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <utility>

#include "aliquot/communicator.h"
#include "launcher.h"

namespace aliquot::test {

/// A transport with its one-sided half hidden, and a thread that launches: what the core sees of NCCL.
class TwoSided : public Communicator {
 public:
  explicit TwoSided(Communicator& inner)
      : Communicator(inner.rank(), inner.world_size(), inner.timeout(), inner.names()), inner_(inner) {}

  std::string_view name() const noexcept override { return "two_sided"; }
  bool one_sided() const noexcept override { return false; }

  void all_gather(const Tag& tag, std::span<const std::byte> part, std::byte* whole, Stream stream) override {
    inner().all_gather(tag, part, whole, stream);
  }
  void reduce_scatter(const Tag& tag, const float* whole, std::span<float> part, Stream stream) override {
    inner().reduce_scatter(tag, whole, part, stream);
  }
  void all_reduce(const Tag& tag, std::span<float> data, Stream stream) override {
    inner().all_reduce(tag, data, stream);
  }
  void broadcast(const Tag& tag, std::span<std::byte> data, int root, Stream stream) override {
    inner().broadcast(tag, data, root, stream);
  }
  void all_to_all(const Tag& tag, const std::byte* input, std::byte* output, std::size_t piece_bytes,
                  Stream stream) override {
    inner().all_to_all(tag, input, output, piece_bytes, stream);
  }
  void send(const Tag& tag, std::span<const std::byte> data, int to, Stream stream) override {
    inner().send(tag, data, to, stream);
  }
  void receive(const Tag& tag, std::span<std::byte> data, int from, Stream stream) override {
    inner().receive(tag, data, from, stream);
  }
  void barrier(const Tag& tag) override { inner().barrier(tag); }
  std::uint64_t launch(std::function<void()> work) override { return launcher_.give(std::move(work)); }
  void await(std::uint64_t launch) override try { launcher_.await(launch); } catch (...) {
    launcher_.drain();
    throw;
  }
  void abort(std::string_view reason) noexcept override { inner_.abort(reason); }
  void leave() noexcept override {
    settle(*this);
    inner_.leave();
  }

 private:
  Communicator& inner() {
    await(every_launch);
    return inner_;
  }

  Communicator& inner_;
  Launcher launcher_{[] {}};
};

}  // namespace aliquot::test
