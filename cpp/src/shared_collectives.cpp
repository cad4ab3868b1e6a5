// Collectives in rounds. In round n of a group each member fills its envelope and buffer (n % 2), posts n, waits until
// all have posted n, and reads the others' buffers. Two buffers are enough, without a second wait: a member that fills
// buffer n % 2 has seen all post n - 1, which each did only after it had read round n - 2.

#include <algorithm>
#include <cstring>
#include <string>

#include "aliquot/error.h"
#include "rank.h"
#include "shared_communicator.h"

namespace aliquot {
namespace {

const auto nothing = [](auto&&...) {};

// body(begin, count) for pieces of [0, total); once, with nothing, if there is nothing, for the tags' sake.
template <typename Body>
void for_pieces(std::size_t total, std::size_t longest, const Body& body) {
  std::size_t begin = 0;
  do {
    const std::size_t count = std::min(longest, total - begin);
    body(begin, count);
    begin += count;
  } while (begin < total);
}

void copy_bytes(const void* from, std::size_t bytes, void* to) {
  if (bytes > 0 && from != to) std::memcpy(to, from, bytes);
}

// Called for rank 0, 1, 2, ...: (r0 + r1) + r2 ...
void add(std::size_t rank, const std::byte* addends, std::span<float> sum) {
  const auto* values = reinterpret_cast<const float*>(addends);
  if (rank == 0) return copy_bytes(values, sum.size_bytes(), sum.data());
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += values[i];
}

}  // namespace

Envelope SharedCommunicator::begin(Group& group, std::string_view collective, const Tag& tag, std::size_t size,
                                   int named_root) {
  Envelope envelope = make_envelope(collective, tag, size, named_root);
  envelope.sequence = ++group.calls;
  return envelope;
}

template <typename Write, typename Read>
void SharedCommunicator::round(Group& group, const Envelope& call, const Write& write, const Read& read) {
  waiter_.require_intact();  // in a world that has failed nobody posts, so nobody takes a later round for this one
  ++group.round;
  Envelope& mine = group.envelope(group.self);
  mine = call;
  write(group.buffer(group.self));
  post(group.lanes[group.self]->round, group.round);
  const auto all_here = [&group] {
    return std::all_of(group.lanes.begin(), group.lanes.end(),
                       [&group](const Lane* lane) { return reached(lane->round, group.round); });
  };
  wait(all_here, [&mine] { return to_text(mine); });
  require_agreement(group);
  for (std::size_t member = 0; member < group.lanes.size(); ++member) read(member, group.buffer(member));
}

void SharedCommunicator::require_agreement(const Group& group) const {
  const Envelope& first = group.envelope(0);
  for (std::size_t member = 1; member < group.lanes.size(); ++member) {
    const Envelope& other = group.envelope(member);
    if (other == first) continue;
    throw CommunicatorError(disagreement(names().of(group.ranks[0]), first, names().of(group.ranks[member]), other));
  }
}

SharedCommunicator::Group& SharedCommunicator::pair(const char* call, int peer) {
  require_rank(peer, world_size());
  if (peer == rank()) throw InvalidArgument(std::string(call) + ": rank " + std::to_string(peer) + " is this rank");
  return pairs_[static_cast<std::size_t>(peer)];
}

void SharedCommunicator::all_gather(const Tag& tag, std::span<const std::byte> part, std::byte* whole, Stream) {
  const Envelope call = begin(all_, "all_gather", tag, part.size());
  for_pieces(part.size(), all_.buffer_bytes, [&](std::size_t first, std::size_t bytes) {
    round(
        all_, call, [&](std::byte* mine) { copy_bytes(part.data() + first, bytes, mine); },
        [&](std::size_t r, const std::byte* theirs) {
          std::byte* place = whole + r * part.size() + first;
          copy_bytes(r == all_.self ? part.data() + first : theirs, bytes, place);
        });
  });
}

void SharedCommunicator::reduce_scatter(const Tag& tag, const float* whole, std::span<float> part, Stream) {
  const Envelope call = begin(all_, "reduce_scatter", tag, part.size());
  const std::size_t longest = longest_piece(sizeof(float));
  for_pieces(part.size(), longest, [&](std::size_t first, std::size_t count) {
    const std::size_t bytes = count * sizeof(float);
    const auto write = [&](std::byte* mine) {
      for (std::size_t r = 0; r < all_.lanes.size(); ++r) {
        copy_bytes(whole + r * part.size() + first, bytes, mine + r * bytes);
      }
    };
    round(all_, call, write, [&](std::size_t r, const std::byte* theirs) {
      add(r, theirs + all_.self * bytes, part.subspan(first, count));
    });
  });
}

// In two rounds: each rank sums one slice of the piece, then all gather the slices.
void SharedCommunicator::all_reduce(const Tag& tag, std::span<float> data, Stream) {
  const Envelope call = begin(all_, "all_reduce", tag, data.size());
  for_pieces(data.size(), all_.buffer_bytes / sizeof(float), [&](std::size_t first, std::size_t count) {
    const std::span<float> piece = data.subspan(first, count);
    const auto slice = [&](std::size_t r) {
      const std::size_t length = (count + all_.lanes.size() - 1) / all_.lanes.size();
      const std::size_t begin = std::min(r * length, count);
      return piece.subspan(begin, std::min(length, count - begin));
    };
    const std::span<float> mine = slice(all_.self);
    const auto offset = static_cast<std::size_t>(mine.data() - piece.data()) * sizeof(float);
    round(
        all_, call, [&](std::byte* buffer) { copy_bytes(piece.data(), piece.size_bytes(), buffer); },
        [&](std::size_t r, const std::byte* theirs) { add(r, theirs + offset, mine); });
    round(
        all_, call, [&](std::byte* buffer) { copy_bytes(mine.data(), mine.size_bytes(), buffer); },
        [&](std::size_t r, const std::byte* sum) {
          if (r != all_.self) copy_bytes(sum, slice(r).size_bytes(), slice(r).data());
        });
  });
}

void SharedCommunicator::broadcast(const Tag& tag, std::span<std::byte> data, int root, Stream) {
  require_rank(root, world_size());
  const Envelope call = begin(all_, "broadcast", tag, data.size(), names().of(root));
  pass(all_, call, static_cast<std::size_t>(root), data, data.data());
}

void SharedCommunicator::all_to_all(const Tag& tag, const std::byte* input, std::byte* output, std::size_t piece_bytes,
                                    Stream) {
  const Envelope call = begin(all_, "all_to_all", tag, piece_bytes);
  for_pieces(piece_bytes, longest_piece(1), [&](std::size_t first, std::size_t bytes) {
    const auto write = [&](std::byte* mine) {
      for (std::size_t r = 0; r < all_.lanes.size(); ++r) {
        copy_bytes(input + r * piece_bytes + first, bytes, mine + r * bytes);
      }
    };
    round(all_, call, write, [&](std::size_t r, const std::byte* theirs) {
      copy_bytes(theirs + all_.self * bytes, bytes, output + r * piece_bytes + first);
    });
  });
}

// Both partners belong to one group, whichever of them sends: two that both send, or both receive, disagree and learn
// of it at once.
void SharedCommunicator::send(const Tag& tag, std::span<const std::byte> data, int to, Stream) {
  Group& group = pair("send", to);
  pass(group, begin(group, "send", tag, data.size(), names().of(rank())), group.self, data, nullptr);
}

void SharedCommunicator::receive(const Tag& tag, std::span<std::byte> data, int from, Stream) {
  Group& group = pair("receive", from);
  pass(group, begin(group, "send", tag, data.size(), names().of(from)), 1 - group.self, data, data.data());
}

void SharedCommunicator::pass(Group& group, const Envelope& call, std::size_t sender, std::span<const std::byte> data,
                              std::byte* into) {
  for_pieces(data.size(), group.buffer_bytes, [&](std::size_t first, std::size_t bytes) {
    round(
        group, call,
        [&](std::byte* mine) {
          if (group.self == sender) copy_bytes(data.data() + first, bytes, mine);
        },
        [&](std::size_t member, const std::byte* theirs) {
          if (group.self != sender && member == sender) copy_bytes(theirs, bytes, into + first);
        });
  });
}

void SharedCommunicator::barrier(const Tag& tag) { round(all_, begin(all_, "barrier", tag, 0), nothing, nothing); }

// How many elements for each rank fit into one buffer; whole cache lines.
std::size_t SharedCommunicator::longest_piece(std::size_t element_bytes) const {
  return std::max<std::size_t>(all_.buffer_bytes / all_.lanes.size() / 64, 1) * 64 / element_bytes;
}

}  // namespace aliquot
