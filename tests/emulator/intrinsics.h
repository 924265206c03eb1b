// The device functions that kernels call, for the emulator: barriers, warp operations, atomics, loads, bits, rounding.
// A default argument holds the line of the call (__builtin_LINE), so that messages name it.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator.h"

#define MGRAN_SITE_PARAMETERS const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define MGRAN_SITE(operation) (mgran::emulator::Site{operation, file, line})

constexpr unsigned kMgranFullWarp = 0xffffffffu;

// --- Barriers. ---

inline void __syncthreads(MGRAN_SITE_PARAMETERS) {
  mgran::emulator::block_barrier(MGRAN_SITE("__syncthreads"), 0, mgran::emulator::Vote::none);
}
inline int __syncthreads_count(int predicate, MGRAN_SITE_PARAMETERS) {
  return mgran::emulator::block_barrier(MGRAN_SITE("__syncthreads_count"), predicate, mgran::emulator::Vote::count);
}
inline int __syncthreads_or(int predicate, MGRAN_SITE_PARAMETERS) {
  return mgran::emulator::block_barrier(MGRAN_SITE("__syncthreads_or"), predicate, mgran::emulator::Vote::any);
}
inline int __syncthreads_and(int predicate, MGRAN_SITE_PARAMETERS) {
  return mgran::emulator::block_barrier(MGRAN_SITE("__syncthreads_and"), predicate, mgran::emulator::Vote::all);
}
inline void __syncwarp(unsigned mask = kMgranFullWarp, MGRAN_SITE_PARAMETERS) {
  mgran::emulator::warp_barrier(MGRAN_SITE("__syncwarp"), mask);
}

// --- Shuffles and votes. ---

namespace mgran::emulator {

template <typename T>
T shuffle(Site site, unsigned mask, T value, int operand, int width, Shuffle kind) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a shuffle moves at most 8 bytes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_exchange(site, mask, bits, operand, width, kind);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace mgran::emulator

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, MGRAN_SITE_PARAMETERS) {
  using mgran::emulator::Shuffle;
  return mgran::emulator::shuffle(MGRAN_SITE("__shfl_sync"), mask, value, lane, width, Shuffle::absolute);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, MGRAN_SITE_PARAMETERS) {
  using mgran::emulator::Shuffle;
  return mgran::emulator::shuffle(MGRAN_SITE("__shfl_up_sync"), mask, value, static_cast<int>(delta), width,
                                  Shuffle::up);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, MGRAN_SITE_PARAMETERS) {
  using mgran::emulator::Shuffle;
  return mgran::emulator::shuffle(MGRAN_SITE("__shfl_down_sync"), mask, value, static_cast<int>(delta), width,
                                  Shuffle::down);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, MGRAN_SITE_PARAMETERS) {
  using mgran::emulator::Shuffle;
  return mgran::emulator::shuffle(MGRAN_SITE("__shfl_xor_sync"), mask, value, lanes, width, Shuffle::exclusive_or);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, MGRAN_SITE_PARAMETERS) {
  return mgran::emulator::warp_ballot(MGRAN_SITE("__ballot_sync"), mask, predicate);
}
inline int __any_sync(unsigned mask, int predicate, MGRAN_SITE_PARAMETERS) {
  return mgran::emulator::warp_ballot(MGRAN_SITE("__any_sync"), mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate, MGRAN_SITE_PARAMETERS) {
  return mgran::emulator::warp_ballot(MGRAN_SITE("__all_sync"), mask, predicate) == mask;
}

// --- Atomics: relaxed, as on the device, and returning the value before. ---

namespace mgran::emulator {

template <typename T, typename Change>
T exchange(T* address, Change change) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics are of 4 or 8 bytes");
  using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;
  if (reinterpret_cast<std::uintptr_t>(address) % sizeof(T)) fail("a misaligned atomic");
  Bits* const target = reinterpret_cast<Bits*>(address);
  Bits before = __atomic_load_n(target, __ATOMIC_RELAXED), after;
  T old, changed;
  do {
    std::memcpy(&old, &before, sizeof(T));
    changed = change(old);
    std::memcpy(&after, &changed, sizeof(T));
  } while (!__atomic_compare_exchange_n(target, &before, after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

// The value's type is taken from the address, not deduced: CUDA's overloads convert it too.
template <typename T>
struct Same {
  using type = T;
};
template <typename T>
using SameType = typename Same<T>::type;

}  // namespace mgran::emulator

template <typename T>
T atomicAdd(T* address, mgran::emulator::SameType<T> value) {
  return mgran::emulator::exchange(address, [=](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicMin(T* address, mgran::emulator::SameType<T> value) {
  return mgran::emulator::exchange(address, [=](T old) { return old < value ? old : value; });
}
template <typename T>
T atomicMax(T* address, mgran::emulator::SameType<T> value) {
  return mgran::emulator::exchange(address, [=](T old) { return old > value ? old : value; });
}
template <typename T>
T atomicOr(T* address, mgran::emulator::SameType<T> value) {
  return mgran::emulator::exchange(address, [=](T old) { return static_cast<T>(old | value); });
}
template <typename T>
T atomicAnd(T* address, mgran::emulator::SameType<T> value) {
  return mgran::emulator::exchange(address, [=](T old) { return static_cast<T>(old & value); });
}
template <typename T>
T atomicExch(T* address, mgran::emulator::SameType<T> value) {
  return mgran::emulator::exchange(address, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, mgran::emulator::SameType<T> compare, mgran::emulator::SameType<T> value) {
  return mgran::emulator::exchange(address, [=](T old) { return old == compare ? value : old; });
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// --- Loads and stores with cache hints. The device faults on a misaligned address, so these look. ---

namespace mgran::emulator {

template <typename T>
T* aligned(T* address, const char* what) {
  if (reinterpret_cast<std::uintptr_t>(address) % alignof(T)) fail(what);
  return address;
}

}  // namespace mgran::emulator

template <typename T>
T __ldg(const T* address) {
  return *mgran::emulator::aligned(address, "a misaligned __ldg");
}
template <typename T>
T __ldcs(const T* address) {
  return *mgran::emulator::aligned(address, "a misaligned __ldcs");
}
template <typename T>
void __stcs(T* address, mgran::emulator::SameType<T> value) {
  *mgran::emulator::aligned(address, "a misaligned __stcs") = value;
}

// --- Bits. ---

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(high) << 32 | low;
  unsigned result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned choice = selector >> (4 * i) & 0xf;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (choice & 7)) & 0xff);
    if (choice & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign alone
    result |= byte << (8 * i);
  }
  return result;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<std::uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<std::uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
inline int __float_as_int(float x) {
  int bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline unsigned __float_as_uint(float x) { return static_cast<unsigned>(__float_as_int(x)); }
inline float __int_as_float(int bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline float __uint_as_float(unsigned bits) { return __int_as_float(static_cast<int>(bits)); }

// --- Arithmetic with stated rounding: the host's, which rounds to nearest even. ---

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __double2int_rn(double x) { return static_cast<int>(std::nearbyint(x)); }

// CUDA has these without std::, for every arithmetic type; for floats they drop a NaN, which std::min does not.
template <typename A, typename B>
std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin(static_cast<T>(a), static_cast<T>(b));
  return std::min(static_cast<T>(a), static_cast<T>(b));
}
template <typename A, typename B>
std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax(static_cast<T>(a), static_cast<T>(b));
  return std::max(static_cast<T>(a), static_cast<T>(b));
}
