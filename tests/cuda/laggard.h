/// \file
/// A transport of GPUs that takes its time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "aliquot/memory_resource.h"
#include "device_training.h"
#include "tests/cpp/two_sided.h"

namespace aliquot::test {

/// A communicator whose collectives begin late.
class Laggard final : public TwoSided {
 public:
  Laggard(Communicator& inner, Delays& delays) : TwoSided(inner), inner_(inner), delays_(delays) {}

  std::string_view name() const noexcept override { return inner_.name(); }
  Communicator& host() noexcept override { return inner_.host(); }
  bool sums_inside() const noexcept override { return inner_.sums_inside(); }
  void all_gather(const Tag& tag, std::span<const std::byte> part, std::byte* whole, Stream stream) override {
    delays_.before_what_is_next_on(stream);
    inner_.all_gather(tag, part, whole, stream);
  }
  void exchange(const Tag& tag, const std::byte* input, std::byte* output, std::size_t piece_bytes,
                Stream stream) override {
    delays_.before_what_is_next_on(stream);
    inner_.exchange(tag, input, output, piece_bytes, stream);
  }
  void all_reduce(const Tag& tag, std::span<float> data, Stream stream) override {
    delays_.before_what_is_next_on(stream);
    inner_.all_reduce(tag, data, stream);
  }
  void reduce_scatter(const Tag& tag, const float* whole, std::span<float> part, Stream stream) override {
    delays_.before_what_is_next_on(stream);
    inner_.reduce_scatter(tag, whole, part, stream);
  }
  std::shared_ptr<void> register_memory(std::span<std::byte> memory) override { return inner_.register_memory(memory); }
  std::uint64_t launch(std::function<void()> work) override { return inner_.launch(std::move(work)); }
  void await(std::uint64_t launch) override { inner_.await(launch); }
  bool maps_peers() const noexcept override { return inner_.maps_peers(); }
  std::unique_ptr<MemoryResource> registrable_memory() override { return inner_.registrable_memory(); }
  const std::byte* peer(int rank, const std::byte* own) const override { return inner_.peer(rank, own); }
  void meet(const Tag& tag, int channel, Stream stream) override {
    delays_.before_what_is_next_on(stream);
    inner_.meet(tag, channel, stream);
  }

 private:
  Communicator& inner_;
  Delays& delays_;
};

}  // namespace aliquot::test
