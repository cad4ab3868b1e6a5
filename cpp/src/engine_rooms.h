/// \file
/// What the sources of the Engine share: its rooms are the host's or the device's.
#pragma once

#include <variant>

#include "aliquot/memory_resource.h"

namespace aliquot {

inline bool on_cpu(const MemoryResource& memory) { return memory.device().type == Device::Type::cpu; }

/// Calls `use` with whichever room is there.
template <typename Room, typename Use>
decltype(auto) with(Room& room, const Use& use) {
  return std::visit([&](auto& pointer) -> decltype(auto) { return use(*pointer); }, room);
}

}  // namespace aliquot
