#include "characters.h"

#include <gtest/gtest.h>

#include <algorithm>

#include <string>

namespace aliquot {
namespace {

TEST(Characters, WhatFitsIsLeftAlone) {
  EXPECT_EQ(beginning_of("rank", 4), "rank");
  EXPECT_EQ(end_of("rank", 4), "rank");
  EXPECT_EQ(beginning_of("", 0), "");
  EXPECT_EQ(end_of("", 0), "");
}

TEST(Characters, NoneIsCutInTwo) {
  const std::string text = "aé€😀b";  // characters of 1, 2, 3, 4 and 1 bytes
  const std::size_t begins[] = {0, 1, 3, 6, 10, 11};
  for (std::size_t longest = 0; longest <= text.size(); ++longest) {
    std::size_t from_the_left = 0, from_the_right = 0;
    for (const std::size_t begin : begins) {
      if (begin <= longest) from_the_left = begin;
      if (text.size() - begin <= longest) from_the_right = std::max(from_the_right, text.size() - begin);
    }
    EXPECT_EQ(beginning_of(text, longest), text.substr(0, from_the_left)) << longest;
    EXPECT_EQ(end_of(text, longest), text.substr(text.size() - from_the_right)) << longest;
  }
}

}  // namespace
}  // namespace aliquot
