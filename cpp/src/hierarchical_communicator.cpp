#include "hierarchical_communicator.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <string>

#include "aliquot/error.h"
#include "aliquot/streams.h"
#include "aliquot/transports.h"
#include "rank.h"

namespace aliquot {
namespace {

constexpr std::size_t longest_piece = std::size_t{64} << 20;

// Copies of the host's memory must not wait for what a device was given.
void copy(Device device, void* to, const void* from, std::size_t bytes, Stream stream) {
  if (device.type != Device::Type::cpu) return copy_async(to, from, bytes, stream);
  if (bytes != 0) std::memcpy(to, from, bytes);
}

/// Pieces in the order [a][b] into the order [b][a].
void transpose(Device device, const std::byte* from, std::size_t a_count, std::size_t b_count, std::size_t bytes,
               std::byte* to, Stream stream) {
  for (std::size_t a = 0; a < a_count; ++a) {
    for (std::size_t b = 0; b < b_count; ++b) {
      copy(device, to + (b * a_count + a) * bytes, from + (a * b_count + b) * bytes, bytes, stream);
    }
  }
}

float* floats(std::byte* bytes) { return reinterpret_cast<float*>(bytes); }

}  // namespace

HierarchicalCommunicator::HierarchicalCommunicator(Communicator& inside, Communicator& between, Device device)
    : HierarchicalCommunicator(inside, between, between, device) {
  if (device.type == Device::Type::cpu) return;
  host_.reset(new HierarchicalCommunicator(inside.host(), between.host(), between, {}));
}

HierarchicalCommunicator::HierarchicalCommunicator(Communicator& inside, Communicator& between, Communicator& launching,
                                                   Device device)
    : Communicator(between.rank() * inside.world_size() + inside.rank(), between.world_size() * inside.world_size(),
                   between.timeout()),
      inside_(inside), between_(between), launching_(launching), device_(device), of_gathers_(device),
      of_sums_(device) {}

// Ranks that disagree find out inside a host or between two, and only those; the others would wait for them. Of a rank
// that is lost all hear without that.
void HierarchicalCommunicator::end_world_on_error(const std::invocable auto& call) {
  launching_.await(every_launch);
  try {
    call();
  } catch (const PeerLost&) {
    throw;
  } catch (const std::exception& error) {
    abort(error.what());
    throw;
  }
}

// What came from host h is gathered inside to where it belongs: host by host, without a copy of the whole.
void HierarchicalCommunicator::all_gather(const Tag& tag, std::span<const std::byte> part, std::byte* whole,
                                          Stream stream) {
  end_world_on_error([&] {
    of_gathers_.lend(hosts() * part.size(), stream, [&](std::byte* of_hosts) {
      between_.all_gather(tag, part, of_hosts, stream);
      for (std::size_t host = 0; host < hosts(); ++host) {
        inside_.all_gather(tag, {of_hosts + host * part.size(), part.size()}, whole + host * here() * part.size(),
                           stream);
      }
    });
  });
}

void HierarchicalCommunicator::reduce_scatter(const Tag& tag, const float* whole, std::span<float> part,
                                              Stream stream) {
  end_world_on_error([&] {
    of_sums_.lend(hosts() * part.size_bytes(), stream, [&](std::byte* for_hosts) {
      for (std::size_t host = 0; host < hosts(); ++host) {
        inside_.reduce_scatter(tag, whole + host * here() * part.size(),
                               {floats(for_hosts) + host * part.size(), part.size()}, stream);
      }
      between_.reduce_scatter(tag, floats(for_hosts), part, stream);
    });
  });
}

// Padded, with whatever is there, so that each rank has a share.
void HierarchicalCommunicator::all_reduce(const Tag& tag, std::span<float> data, Stream stream) {
  const std::size_t count = (data.size() + here() - 1) / here();
  end_world_on_error([&] {
    of_sums_.lend((here() + 1) * count * sizeof(float), stream, [&](std::byte* memory) {
      float* const whole = floats(memory);
      const std::span<float> share(whole + here() * count, count);
      copy(device_, whole, data.data(), data.size_bytes(), stream);
      inside_.reduce_scatter(tag, whole, share, stream);
      between_.all_reduce(tag, share, stream);
      inside_.all_gather(tag, std::as_bytes(share), memory, stream);
      copy(device_, data.data(), whole, data.size_bytes(), stream);
    });
  });
}

// A piece at a time, for it may be a whole model's: nothing else is as large as what the scratch must hold then.
void HierarchicalCommunicator::broadcast(const Tag& tag, std::span<std::byte> data, int root, Stream stream) {
  require_rank(root, world_size());
  end_world_on_error([&] {
    std::size_t begin = 0;
    do {
      const std::size_t bytes = std::min(longest_piece, data.size() - begin);
      broadcast_piece(tag, data.subspan(begin, bytes), root, stream);
      begin += bytes;
    } while (begin < data.size());
  });
}

// Each rank of the root's host takes its share to the other hosts.
void HierarchicalCommunicator::broadcast_piece(const Tag& tag, std::span<std::byte> data, int root, Stream stream) {
  const int host = root / inside_.world_size(), place = root % inside_.world_size();
  const std::size_t bytes = (data.size() + here() - 1) / here();
  if (host == between_.rank()) inside_.broadcast(tag, data, place, stream);
  of_gathers_.lend((here() + 1) * bytes, stream, [&](std::byte* whole) {
    const std::span<std::byte> share(whole + here() * bytes, bytes);
    copy(device_, whole, data.data(), data.size(), stream);
    copy(device_, share.data(), whole + static_cast<std::size_t>(inside_.rank()) * bytes, bytes, stream);
    between_.broadcast(tag, share, host, stream);
    inside_.all_gather(tag, share, whole, stream);
    copy(device_, data.data(), whole, data.size(), stream);
  });
}

// First to whoever has the receiver's place in this host: input is in the order [host][place], inside wants
// [place][host], and gives [place of the sender][host].
void HierarchicalCommunicator::all_to_all(const Tag& tag, const std::byte* input, std::byte* output,
                                          std::size_t piece_bytes, Stream stream) {
  const std::size_t all = hosts() * here() * piece_bytes;
  end_world_on_error([&] {
    of_sums_.lend(2 * all, stream, [&](std::byte* by_place) {
      std::byte* const received = by_place + all;
      transpose(device_, input, hosts(), here(), piece_bytes, by_place, stream);
      inside_.all_to_all(tag, by_place, received, hosts() * piece_bytes, stream);
      transpose(device_, received, here(), hosts(), piece_bytes, by_place, stream);
      between_.all_to_all(tag, by_place, output, here() * piece_bytes, stream);
    });
  });
}

HierarchicalCommunicator::Link HierarchicalCommunicator::link_to(int rank) const {
  require_rank(rank, world_size());
  const int host = rank / inside_.world_size(), place = rank % inside_.world_size();
  if (host == between_.rank()) return {inside_, place};
  if (place == inside_.rank()) return {between_, host};
  throw InvalidArgument("send and receive: ranks " + std::to_string(this->rank()) + " and " + std::to_string(rank) +
                        " are on different hosts and have different places there; nothing joins them directly");
}

void HierarchicalCommunicator::send(const Tag& tag, std::span<const std::byte> data, int to, Stream stream) {
  const Link link = link_to(to);
  end_world_on_error([&] { link.communicator.send(tag, data, link.peer, stream); });
}

void HierarchicalCommunicator::receive(const Tag& tag, std::span<std::byte> data, int from, Stream stream) {
  const Link link = link_to(from);
  end_world_on_error([&] { link.communicator.receive(tag, data, link.peer, stream); });
}

// Whoever has this rank's place in another host has met all of that host.
void HierarchicalCommunicator::barrier(const Tag& tag) {
  end_world_on_error([&] {
    inside_.barrier(tag);
    between_.barrier(tag);
  });
}

void HierarchicalCommunicator::abort(std::string_view reason) noexcept {
  inside_.abort(reason);
  between_.abort(reason);
}

void HierarchicalCommunicator::require_intact() {
  inside_.require_intact();
  between_.require_intact();
}

void HierarchicalCommunicator::leave() noexcept {
  inside_.leave();
  between_.leave();
}

std::unique_ptr<Communicator> make_hierarchical_communicator(Communicator& inside, Communicator& between,
                                                             Device device) {
  return std::make_unique<HierarchicalCommunicator>(inside, between, device);
}

}  // namespace aliquot
