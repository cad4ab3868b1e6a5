/// \file
/// Who meets on which channel (Communicator::meet).
#pragma once

namespace aliquot {

inline constexpr int gather_channel = 0;
inline constexpr int reduce_channel = 1;
inline constexpr int step_channel = 2;

}  // namespace aliquot
