/// \file
/// Runs kernels on every instruction set that this machine has.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "aliquot/parallel.h"
#include "cpu/kernel_table.h"

namespace aliquot {

inline std::vector<cpu::Isa> supported_isas() {
  std::vector<cpu::Isa> isas;
  for (cpu::Isa isa : {cpu::Isa::plain, cpu::Isa::avx2, cpu::Isa::avx512}) {
    if (cpu::supported(isa)) isas.push_back(isa);
  }
  return isas;
}

/// Tests that change the instruction set and the number of threads.
class Kernels : public testing::Test {
 protected:
  void TearDown() override {
    cpu::use(cpu::best_isa());
    set_thread_count(threads_);
  }

 private:
  const int threads_ = thread_count();
};

}  // namespace aliquot
