// `align` on the CPU: person by person, regions and then inputs, so that a person's map is read while it is still in
// the cache, and is written to memory only where it is asked for.
#include "../align.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

#include "inputs_cpu.h"
#include "inputs_pages.h"
#include "threads.h"

namespace {

// One person of the batch as a batch of its own. map: [height, width], where the person's map goes.
int align_person(const MgranAlign& args, std::int64_t n, std::uint8_t* map, bool stream) {
  const std::int64_t mask_pixels = static_cast<std::int64_t>(args.regions.mask_height) * args.regions.mask_width;
  const std::int64_t mask_bytes = mask_pixels * (args.regions.mask_is_float ? 4 : 1);
  MgranRegions regions = args.regions;
  regions.people = 1;
  regions.mask = static_cast<const std::uint8_t*>(regions.mask) + n * mask_bytes;
  regions.keypoints += n * 51;
  regions.map = map;
  const int status = mgran_regions_cpu(&regions, 1);
  if (status != MGRAN_OK) return status;

  MgranInputs inputs = args.inputs;
  inputs.people = 1;
  inputs.crops += n * inputs.pixels * 3;
  inputs.map = map;
  inputs.out = static_cast<std::uint8_t*>(inputs.out) + n * mgran::inputs_bytes(inputs);
  return mgran::inputs_prepared(inputs, 1, stream);
}

// Fewer people than threads: every thread works at one person after the other.
int align_few(const MgranAlign& args, int threads, bool stream) {
  std::vector<std::uint8_t> scratch;
  MgranRegions regions = args.regions;
  if (!regions.map) {
    scratch.resize(static_cast<std::size_t>(args.inputs.people * args.inputs.pixels));
    regions.map = scratch.data();
  }
  const int status = mgran_regions_cpu(&regions, threads);
  if (status != MGRAN_OK) return status;
  MgranInputs inputs = args.inputs;
  inputs.map = regions.map;
  return mgran::inputs_prepared(inputs, threads, stream);
}

int run(const MgranAlign& args, int threads) {
  const std::int64_t people = args.inputs.people, pixels = args.inputs.pixels;
  const bool stream = mgran::prepare_output(args.inputs.out, mgran::inputs_bytes(args.inputs));
  if (people < threads) return align_few(args, threads, stream);
  // Allocated out here: an exception must not leave an OpenMP region.
  std::vector<std::uint8_t> scratch;
  if (!args.regions.map) scratch.resize(static_cast<std::size_t>(pixels * threads));
  std::atomic<int> status{MGRAN_OK};
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (std::int64_t n = 0; n < people; ++n) {
    std::uint8_t* map =
        args.regions.map ? args.regions.map + n * pixels : scratch.data() + mgran::thread_number() * pixels;
    const int result = align_person(args, n, map, stream);
    if (result != MGRAN_OK) status.store(result, std::memory_order_relaxed);
  }
  return status.load(std::memory_order_relaxed);
}

}  // namespace

extern "C" int mgran_align_cpu(const MgranAlign* args, int threads) {
  if (!mgran::element_bytes(args->inputs.dtype)) return MGRAN_UNSUPPORTED;
  if (args->inputs.people == 0 || args->inputs.pixels == 0) return MGRAN_OK;
  try {
    return run(*args, std::max(threads, 1));
  } catch (const std::bad_alloc&) {
    return MGRAN_NO_MEMORY;
  }
}
