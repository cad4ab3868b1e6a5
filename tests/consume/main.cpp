// Prints the version of the installed headers and how two ranks share a unit, computed by the installed library.
#include <iostream>

#include "aliquot/partition.h"
#include "aliquot/version.h"

int main() {
  const aliquot::Layout layout({.name = "block", .params = {{"weight", 33}, {"bias", 7}}}, 2);
  std::cout << aliquot::version << ' ' << layout.shard_numel() << ' ' << layout.param(1).begin << '\n';
}
