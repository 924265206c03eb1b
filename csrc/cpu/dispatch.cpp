#include "dispatch.h"

#include <atomic>

namespace mgran {
namespace {

Isa detect() {
#if MGRAN_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx2 && avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::portable;
#else
  return Isa::portable;
#endif
}

std::atomic<int> most{static_cast<int>(Isa::avx512)};

}  // namespace

Isa isa() {
  static const Isa machine = detect();
  const int allowed = most.load(std::memory_order_relaxed);
  return static_cast<int>(machine) < allowed ? machine : static_cast<Isa>(allowed);
}

bool has_bf16() {
#if MGRAN_X86
  static const bool machine = __builtin_cpu_supports("avx512bf16");
  return machine && isa() >= Isa::avx512;
#else
  return false;
#endif
}

bool has_vnni() {
#if MGRAN_X86
  static const bool machine = __builtin_cpu_supports("avx512vnni");
  return machine && isa() >= Isa::avx512;
#else
  return false;
#endif
}

void limit_isa(Isa isa) { most.store(static_cast<int>(isa), std::memory_order_relaxed); }

}  // namespace mgran
