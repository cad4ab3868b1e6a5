#include <algorithm>
#include <vector>

#include "aliquot/device_kernels.h"
#include "aliquot/streams.h"
#include "cuda/peer_communicator.h"
#include "rank.h"

namespace aliquot {

using cuda::PeerWorld;

// Pieces go through the two halves of the staging in turn. One meeting a piece is enough: a rank puts piece k + 2 into
// the half of piece k behind meeting k + 1, and each peer has come to that one behind its taking of piece k. The
// meeting at the end is for the call that comes next, of whatever kind: it finds staging that nobody reads any more. So
// no call needs to know of the one before, and a graph may be replayed between any two.
void PeerCommunicator::by_pieces(int queue, cuda::Ranks ranks, std::size_t bytes, std::size_t longest, Stream stream,
                                 const Move& put, const Move& take) {
  enqueue(queue, stream, [&] {
    std::size_t half = 0;
    for (std::size_t begin = 0; begin < bytes; begin += longest, half = 1 - half) {
      const Piece piece{begin, std::min(longest, bytes - begin), world_->staging(queue, half)};
      put(piece);
      world_->meetings().meet(queue, ranks, stream);
      take(piece);
    }
    world_->meetings().meet(queue, ranks, stream);
  });
}

std::vector<int> PeerCommunicator::peers_in_turn() const {
  std::vector<int> peers;
  for (int step = 1; step < world_size(); ++step) peers.push_back((rank() + step) % world_size());
  return peers;
}

std::size_t PeerCommunicator::place_bytes() const {
  return PeerWorld::half_bytes / static_cast<std::size_t>(world_size()) / 512 * 512;
}

void PeerCommunicator::all_gather(const Tag& tag, std::span<const std::byte> part, std::byte* whole, Stream stream) {
  const bool registered = peer(rank(), part.data()) != nullptr;
  say(registered ? "all_gather pull" : "all_gather", tag, part.size());
  if (part.empty()) return raise_failure();
  std::byte* const own = whole + static_cast<std::size_t>(rank()) * part.size();
  if (own != part.data()) copy_async(own, part.data(), part.size(), stream);
  if (registered) return pull(part, whole, stream);
  const auto put = [&](const Piece& piece) {
    copy_async(piece.staging, part.data() + piece.begin, piece.bytes, stream);
  };
  const auto take = [&](const Piece& piece) {
    for (const int from : peers_in_turn()) {
      std::byte* const to = whole + static_cast<std::size_t>(from) * part.size() + piece.begin;
      copy_async(to, at(from, piece.staging), piece.bytes, stream);
    }
  };
  by_pieces(gathers, everyone(), part.size(), PeerWorld::half_bytes, stream, put, take);
}

// Between two meetings: the parts are ready, and nobody writes to his before all have read it.
void PeerCommunicator::pull(std::span<const std::byte> part, std::byte* whole, Stream stream) {
  const bool in_place = part.data() == whole + static_cast<std::size_t>(rank()) * part.size();
  enqueue(gathers, stream, [&] {
    world_->meetings().meet(gathers, everyone(), stream);
    for (const int from : peers_in_turn()) {
      std::byte* const to = whole + static_cast<std::size_t>(from) * part.size();
      copy_async(to, peer(from, in_place ? to : part.data()), part.size(), stream);
    }
    world_->meetings().meet(gathers, everyone(), stream);
  });
}

void PeerCommunicator::broadcast(const Tag& tag, std::span<std::byte> data, int root, Stream stream) {
  require_rank(root, world_size());
  say("broadcast", tag, data.size(), root);
  if (data.empty()) return raise_failure();
  const auto put = [&](const Piece& piece) {
    if (rank() == root) copy_async(piece.staging, data.data() + piece.begin, piece.bytes, stream);
  };
  const auto take = [&](const Piece& piece) {
    if (rank() != root) copy_async(data.data() + piece.begin, at(root, piece.staging), piece.bytes, stream);
  };
  by_pieces(gathers, everyone(), data.size(), PeerWorld::half_bytes, stream, put, take);
}

void PeerCommunicator::put_for_each(const Piece& piece, const std::byte* input, std::size_t piece_bytes,
                                    Stream stream) const {
  for (std::size_t to = 0; to < static_cast<std::size_t>(world_size()); ++to) {
    copy_async(piece.staging + to * place_bytes(), input + to * piece_bytes + piece.begin, piece.bytes, stream);
  }
}

void PeerCommunicator::all_to_all(const Tag& tag, const std::byte* input, std::byte* output, std::size_t piece_bytes,
                                  Stream stream) {
  say("all_to_all", tag, piece_bytes);
  const std::size_t own = static_cast<std::size_t>(rank()) * piece_bytes;
  copy_async(output + own, input + own, piece_bytes, stream);
  trade_pieces(input, output, piece_bytes, stream);
}

void PeerCommunicator::exchange(const Tag& tag, const std::byte* input, std::byte* output, std::size_t piece_bytes,
                                Stream stream) {
  say("exchange", tag, piece_bytes);
  trade_pieces(input, output, piece_bytes, stream);
}

void PeerCommunicator::trade_pieces(const std::byte* input, std::byte* output, std::size_t piece_bytes, Stream stream) {
  if (piece_bytes == 0) return raise_failure();
  const std::size_t mine = static_cast<std::size_t>(rank()) * place_bytes();
  const auto put = [&](const Piece& piece) { put_for_each(piece, input, piece_bytes, stream); };
  const auto take = [&](const Piece& piece) {
    for (const int from : peers_in_turn()) {
      std::byte* const to = output + static_cast<std::size_t>(from) * piece_bytes + piece.begin;
      copy_async(to, at(from, piece.staging + mine), piece.bytes, stream);
    }
  };
  by_pieces(others, everyone(), piece_bytes, place_bytes(), stream, put, take);
}

void PeerCommunicator::add_up(const std::byte* staging, std::span<float> sum, Stream stream) const {
  std::vector<const void*> parts;
  for (int from = 0; from < world_size(); ++from) parts.push_back(at(from, staging));
  std::byte* const workspace = world_->workspace();
  cuda::reduce(parts, DType::fp32, 1.0F, sum.data(), DType::fp32, sum.size(), Accumulate::no,
               reinterpret_cast<cuda::DeviceStatistics*>(workspace), workspace + PeerWorld::statistics_bytes, stream);
}

void PeerCommunicator::reduce_scatter(const Tag& tag, const float* whole, std::span<float> part, Stream stream) {
  say("reduce_scatter", tag, part.size());
  if (part.empty()) return raise_failure();
  const auto* const input = reinterpret_cast<const std::byte*>(whole);
  const auto put = [&](const Piece& piece) { put_for_each(piece, input, part.size_bytes(), stream); };
  const auto take = [&](const Piece& piece) {
    const std::span<float> sum = part.subspan(piece.begin / sizeof(float), piece.bytes / sizeof(float));
    add_up(piece.staging + static_cast<std::size_t>(rank()) * place_bytes(), sum, stream);
  };
  by_pieces(others, everyone(), part.size_bytes(), place_bytes(), stream, put, take);
}

void PeerCommunicator::all_reduce(const Tag& tag, std::span<float> data, Stream stream) {
  say("all_reduce", tag, data.size());
  if (data.empty()) return raise_failure();
  const std::span<std::byte> bytes = std::as_writable_bytes(data);
  const auto put = [&](const Piece& piece) {
    copy_async(piece.staging, bytes.data() + piece.begin, piece.bytes, stream);
  };
  const auto take = [&](const Piece& piece) {
    add_up(piece.staging, data.subspan(piece.begin / sizeof(float), piece.bytes / sizeof(float)), stream);
  };
  by_pieces(others, everyone(), bytes.size(), PeerWorld::half_bytes, stream, put, take);
}

void PeerCommunicator::send(const Tag& tag, std::span<const std::byte> data, int to, Stream stream) {
  agree(tag, data.size(), rank(), to);
  if (data.empty()) return;
  const auto put = [&](const Piece& piece) {
    copy_async(piece.staging, data.data() + piece.begin, piece.bytes, stream);
  };
  by_pieces(pairs, {to, to + 1}, data.size(), PeerWorld::half_bytes, stream, put, [](const Piece&) {});
}

void PeerCommunicator::receive(const Tag& tag, std::span<std::byte> data, int from, Stream stream) {
  agree(tag, data.size(), from, rank());
  if (data.empty()) return;
  const auto take = [&](const Piece& piece) {
    copy_async(data.data() + piece.begin, at(from, piece.staging), piece.bytes, stream);
  };
  by_pieces(pairs, {from, from + 1}, data.size(), PeerWorld::half_bytes, stream, [](const Piece&) {}, take);
}

}  // namespace aliquot
