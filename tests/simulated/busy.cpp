#include "tests/cuda/busy.h"

#include <chrono>
#include <thread>

#include "tests/simulated/streams.h"

namespace aliquot::test {

void linger(std::uint64_t cycles, Stream stream) {
  simulated::give(stream, [=] { std::this_thread::sleep_for(std::chrono::nanoseconds(cycles / 2)); });
}

}  // namespace aliquot::test
