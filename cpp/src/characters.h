/// \file
/// Texts that must fit: no character of UTF-8 is cut in two, for who reads them may refuse a half.
#pragma once

#include <cstddef>
#include <string_view>

namespace aliquot {

/// True of a byte that goes on with a character.
constexpr bool goes_on(char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) == 0x80U; }

/// The beginning of `text`, of at most `longest` bytes.
constexpr std::string_view beginning_of(std::string_view text, std::size_t longest) {
  if (text.size() <= longest) return text;
  while (longest > 0 && goes_on(text[longest])) --longest;
  return text.substr(0, longest);
}

/// The end of it.
constexpr std::string_view end_of(std::string_view text, std::size_t longest) {
  if (text.size() <= longest) return text;
  text.remove_prefix(text.size() - longest);
  while (!text.empty() && goes_on(text.front())) text.remove_prefix(1);
  return text;
}

}  // namespace aliquot
