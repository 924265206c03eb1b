// What a large output's memory is like before a kernel writes it.
//
// An allocator hands out large blocks as fresh pages, which the kernel of the operating system zeroes at the first
// touch: that costs several times the kernel's own work, and leaves each page in the cache. Hence two rules: ask for
// huge pages, which need a 512th of the faults; and let stores bypass the caches only where pages are there already.
#pragma once
#include <cstddef>
#include <cstdint>

#include "dispatch.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace mgran {

// From this many bytes on, preparing pages and bypassing the caches pay.
constexpr std::int64_t kLargeOutput = 64 << 20;
constexpr std::int64_t kHugePages = 4 << 20;

// Prepares memory that is about to be written completely; true where stores past the caches would be faster.
inline bool prepare_output([[maybe_unused]] void* out, std::int64_t bytes) {
  if (bytes < kHugePages) return false;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const std::uintptr_t page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(out), end = begin + static_cast<std::size_t>(bytes);
  const std::uintptr_t middle = (begin + (end - begin) / 2) / page * page;
  unsigned char resident = 1;
  if (mincore(reinterpret_cast<void*>(middle), page, &resident) == 0 && !(resident & 1)) {
    // Only pages that lie wholly in the output; a refusal costs nothing but time.
    const std::uintptr_t first = (begin + page - 1) / page * page;
    (void)madvise(reinterpret_cast<void*>(first), end / page * page - first, MADV_HUGEPAGE);
    return false;
  }
#endif
  return bytes >= kLargeOutput;
}

// To be called by each thread that stored past the caches, before others may read what it stored.
inline void end_stream() {
#if MGRAN_X86
  _mm_sfence();
#endif
}

}  // namespace mgran
