// Which instruction set the CPU kernels use: one binary holds a portable version of each, and on x86-64 versions
// for AVX2 and AVX-512, chosen at run time.
//
// A kernel's inner loop is a function with one of the attributes below, called through a table by plain code that
// holds the OpenMP loop:
//
//   MGRAN_AVX2 void row_avx2(...);      // may use the intrinsics of its instruction set
//   MGRAN_AVX512 void row_avx512(...);
//   void row_portable(...);
//   const auto row = mgran::choose(row_portable, MGRAN_ONLY_X86(row_avx2), MGRAN_ONLY_X86(row_avx512));
//
// Attributes of single functions rather than flags of whole files: a file compiled for AVX-512 would also compile
// its share of the standard library's templates for AVX-512, and the linker could keep those for every caller.
// Helpers of such a function must be MGRAN_INLINE; a lambda does not inherit the attribute.
#pragma once
#include <type_traits>

// MGRAN_NO_X86 leaves the portable versions alone, as on any other machine.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(MGRAN_NO_X86)
#define MGRAN_X86 1
#include <immintrin.h>
#define MGRAN_AVX2 __attribute__((target("avx2,fma,f16c,bmi,bmi2")))
// GCC would otherwise take half vectors for loops that it vectorises by itself; Clang does not know the word.
#if defined(__clang__)
#define MGRAN_WIDE
#else
#define MGRAN_WIDE ",prefer-vector-width=512"
#endif
#define MGRAN_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2" MGRAN_WIDE)))
#define MGRAN_ONLY_X86(function) function
#else
#define MGRAN_X86 0
#define MGRAN_ONLY_X86(function) nullptr
#endif

#if defined(__GNUC__)
#define MGRAN_INLINE inline __attribute__((always_inline))
#else
#define MGRAN_INLINE inline
#endif

namespace mgran {

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2 };

// What this machine has, lowered by limit_isa().
Isa isa();

// What some machines with AVX-512 have beyond it: products of bfloat16, and of bytes. False below Isa::avx512.
bool has_bf16();
bool has_vnni();

// For tests and comparisons: use nothing above `most` from now on.
void limit_isa(Isa most);

// `portable` alone says what Function is: the others may be nullptr.
template <typename Function>
Function* choose(Function* portable, [[maybe_unused]] std::common_type_t<Function*> avx2,
                 [[maybe_unused]] std::common_type_t<Function*> avx512) {
#if MGRAN_X86
  const Isa best = isa();
  if (best == Isa::avx512 && avx512) return avx512;
  if (best >= Isa::avx2 && avx2) return avx2;
#endif
  return portable;
}

}  // namespace mgran
