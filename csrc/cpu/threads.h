// OpenMP where there is OpenMP.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mgran {

// Of the calling thread among those of its parallel region.
inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

}  // namespace mgran
