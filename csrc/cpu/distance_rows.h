// A query's row of distances, for the kernels of rankings: included by their inner loops, inside of their namespace and
// once for each instruction set; hence no #pragma once. `Args` are MgranRanking or MgranShots.

// The distances of one query; the first of them that is NaN, or -1. The steps, and so the bits, are those of
// mgran_fast.metrics.distances. Adding 0 makes 0 of -0.
template <typename T, typename Args>
MGRAN_TARGET std::int64_t fill(const Args& args, std::int64_t query, T* out) {
  const T* values = static_cast<const T*>(args.values) + query * args.gallery;
  const T* terms = static_cast<const T*>(args.gallery_terms);
  const T own = args.metric == MGRAN_DISTANCES ? T{0} : static_cast<const T*>(args.query_terms)[query];
  int some = 0;
  if (args.metric == MGRAN_EUCLIDEAN) {
    for (std::int64_t i = 0; i < args.gallery; ++i) {
      const T square = (values[i] * T{-2} + own) + terms[i];
      // A NaN stays one.
      out[i] = std::sqrt(square < T{0} ? T{0} : square) + T{0};
      some |= out[i] != out[i];
    }
  } else if (args.metric == MGRAN_COSINE) {
    for (std::int64_t i = 0; i < args.gallery; ++i) {
      const T distance = T{1} - values[i] * own * terms[i];
      const T above = distance < T{0} ? T{0} : distance;
      out[i] = (above > T{2} ? T{2} : above) + T{0};
      some |= out[i] != out[i];
    }
  } else {
    for (std::int64_t i = 0; i < args.gallery; ++i) {
      out[i] = values[i] + T{0};
      some |= out[i] != out[i];
    }
  }
  if (!some) return -1;
  std::int64_t first = 0;
  while (out[first] == out[first]) ++first;
  return first;
}
