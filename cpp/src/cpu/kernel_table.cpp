#include "cpu/kernel_table.h"

#include <atomic>

#include "aliquot/error.h"

namespace aliquot::cpu {

bool supported(Isa isa) noexcept {
#if defined(__x86_64__)
  if (isa == Isa::avx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  if (isa == Isa::avx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
  return isa == Isa::plain;
}

const KernelTable& table_for(Isa isa) {
  if (!supported(isa)) throw InvalidArgument("this machine cannot run the kernels of that ISA; ask supported() first");
#if defined(__x86_64__)
  if (isa == Isa::avx512) return avx512_table;
  if (isa == Isa::avx2) return avx2_table;
#endif
  return plain_table;
}

Isa best_isa() noexcept {
  for (Isa isa : {Isa::avx512, Isa::avx2}) {
    if (supported(isa)) return isa;
  }
  return Isa::plain;
}

namespace {

std::atomic<const KernelTable*>& table_in_use() {
  static std::atomic<const KernelTable*> table = &table_for(best_isa());
  return table;
}

}  // namespace

const KernelTable& current_table() { return *table_in_use().load(std::memory_order_relaxed); }

void use(Isa isa) { table_in_use() = &table_for(isa); }

}  // namespace aliquot::cpu
