#include "hierarchical_communicator.h"

#include <algorithm>
#include <exception>
#include <string>

#include "aliquot/error.h"
#include "aliquot/transports.h"
#include "rank.h"

namespace aliquot {
namespace {

/// Pieces in the order [a][b] into the order [b][a].
void transpose(const std::byte* from, std::size_t a_count, std::size_t b_count, std::size_t bytes, std::byte* to) {
  for (std::size_t a = 0; a < a_count; ++a) {
    for (std::size_t b = 0; b < b_count; ++b) {
      std::copy_n(from + (a * b_count + b) * bytes, bytes, to + (b * a_count + a) * bytes);
    }
  }
}

}  // namespace

HierarchicalCommunicator::HierarchicalCommunicator(Communicator& inside, Communicator& between)
    : Communicator(between.rank() * inside.world_size() + inside.rank(), between.world_size() * inside.world_size(),
                   between.timeout()),
      inside_(inside), between_(between) {}

// Ranks that disagree find out inside a host or between two, and only those; the others would wait for them. Of a rank
// that is lost all hear without that.
void HierarchicalCommunicator::end_world_on_error(const std::invocable auto& call) {
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
    std::vector<std::byte> of_hosts(hosts() * part.size());
    between_.all_gather(tag, part, of_hosts.data(), stream);
    for (std::size_t host = 0; host < hosts(); ++host) {
      const std::span<const std::byte> share(of_hosts.data() + host * part.size(), part.size());
      inside_.all_gather(tag, share, whole + host * here() * part.size(), stream);
    }
  });
}

void HierarchicalCommunicator::reduce_scatter(const Tag& tag, const float* whole, std::span<float> part,
                                              Stream stream) {
  end_world_on_error([&] {
    std::vector<float> for_hosts(hosts() * part.size());
    for (std::size_t host = 0; host < hosts(); ++host) {
      const std::span<float> share(for_hosts.data() + host * part.size(), part.size());
      inside_.reduce_scatter(tag, whole + host * here() * part.size(), share, stream);
    }
    between_.reduce_scatter(tag, for_hosts.data(), part, stream);
  });
}

void HierarchicalCommunicator::all_reduce(const Tag& tag, std::span<float> data, Stream stream) {
  end_world_on_error([&] {
    std::vector<float> share((data.size() + here() - 1) / here());
    std::vector<float> whole(share.size() * here());
    std::ranges::copy(data, whole.begin());
    inside_.reduce_scatter(tag, whole.data(), share, stream);
    between_.all_reduce(tag, share, stream);
    inside_.all_gather(tag, std::as_bytes(std::span(share)), reinterpret_cast<std::byte*>(whole.data()), stream);
    std::copy_n(whole.begin(), data.size(), data.begin());
  });
}

// Each rank of the root's host takes its share to the other hosts.
void HierarchicalCommunicator::broadcast(const Tag& tag, std::span<std::byte> data, int root, Stream stream) {
  require_rank(root, world_size());
  end_world_on_error([&] {
    const int host = root / inside_.world_size(), place = root % inside_.world_size();
    if (host == between_.rank()) inside_.broadcast(tag, data, place, stream);
    std::vector<std::byte> share((data.size() + here() - 1) / here());
    std::vector<std::byte> whole(share.size() * here());
    std::ranges::copy(data, whole.begin());
    std::copy_n(whole.begin() + inside_.rank() * std::ssize(share), share.size(), share.begin());
    between_.broadcast(tag, share, host, stream);
    inside_.all_gather(tag, share, whole.data(), stream);
    std::copy_n(whole.begin(), data.size(), data.begin());
  });
}

// First to whoever has the receiver's place in this host: input is in the order [host][place], inside wants
// [place][host], and gives [place of the sender][host].
void HierarchicalCommunicator::all_to_all(const Tag& tag, const std::byte* input, std::byte* output,
                                          std::size_t piece_bytes, Stream stream) {
  end_world_on_error([&] {
    std::vector<std::byte> by_place(hosts() * here() * piece_bytes), received(by_place.size());
    transpose(input, hosts(), here(), piece_bytes, by_place.data());
    inside_.all_to_all(tag, by_place.data(), received.data(), hosts() * piece_bytes, stream);
    transpose(received.data(), here(), hosts(), piece_bytes, by_place.data());
    between_.all_to_all(tag, by_place.data(), output, here() * piece_bytes, stream);
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

std::unique_ptr<Communicator> make_hierarchical_communicator(Communicator& inside, Communicator& between) {
  return std::make_unique<HierarchicalCommunicator>(inside, between);
}

}  // namespace aliquot
