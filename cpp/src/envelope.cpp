#include "envelope.h"

#include <algorithm>
#include <string>

#include "characters.h"

namespace aliquot {
namespace {

template <std::size_t capacity>
void store_end(std::string_view text, std::array<char, capacity>& into) {
  std::ranges::copy(end_of(text, capacity), into.begin());
}

template <std::size_t capacity>
std::string_view load(const std::array<char, capacity>& from) {
  return {from.data(), static_cast<std::size_t>(std::find(from.begin(), from.end(), '\0') - from.begin())};
}

}  // namespace

Envelope make_envelope(std::string_view collective, const Tag& tag, std::uint64_t size, int root) {
  Envelope envelope{};
  store_end(collective, envelope.collective);
  store_end(tag.operation, envelope.operation);
  store_end(tag.unit, envelope.unit);
  envelope.size = size;
  envelope.root = root;
  return envelope;
}

std::string to_text(const Envelope& envelope) {
  std::string text = std::string(load(envelope.collective)) + " \"" + std::string(load(envelope.operation)) + '"';
  if (envelope.unit[0] != '\0') text += " of unit \"" + std::string(load(envelope.unit)) + '"';
  if (envelope.root >= 0) text += " from rank " + std::to_string(envelope.root);
  return text + " (size " + std::to_string(envelope.size) + ", call " + std::to_string(envelope.sequence) + ')';
}

std::string disagreement(int rank, const Envelope& call, int other_rank, const Envelope& other_call) {
  return "ranks disagree: rank " + std::to_string(rank) + " calls " + to_text(call) + ", rank " +
         std::to_string(other_rank) + " calls " + to_text(other_call) +
         ". Every rank must call the same collectives in the same order";
}

}  // namespace aliquot
