// `inputs` on the CPU: each pixel is normalised once and stored 1 + regions times, masked.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of variables that its own headers leave uninitialised on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "../inputs.h"

#include <algorithm>

#include "inputs_blocks.h"
#include "inputs_cpu.h"
#include "inputs_pages.h"

namespace {

using mgran::InputsSpan;

// Tasks begin at multiples of this many pixels, which keeps 64-byte alignment for every element type.
constexpr std::int64_t kGrain = 1024;

// Whether a person's whole map is 0.
bool is_empty(const std::uint8_t* map /* [pixels] */, std::int64_t pixels) {
  std::int64_t p = 0;
  // Folding a stretch at a time vectorises, and a person's first pixels are soon found.
  for (; p + 256 <= pixels; p += 256) {
    std::uint8_t any = 0;
    for (int i = 0; i < 256; ++i) any = static_cast<std::uint8_t>(any | map[p + i]);
    if (any) return false;
  }
  for (; p < pixels; ++p)
    if (map[p]) return false;
  return true;
}

template <typename T>
void run(const MgranInputs& args, int threads, bool stream) {
  using Storage = typename T::Storage;
  Storage* const out = static_cast<Storage*>(args.out);
  const std::int64_t plane = args.pixels * 3, inputs = 1 + static_cast<std::int64_t>(args.regions);
  stream = stream && reinterpret_cast<std::uintptr_t>(out) % 64 == 0 &&
           plane * static_cast<std::int64_t>(sizeof(Storage)) % 64 == 0;
  const auto blocks = stream ? mgran::inputs_blocks<T, true>() : mgran::inputs_blocks<T, false>();

  // Whole people where there are enough of them to share out; else pieces of people.
  std::int64_t piece = args.pixels;
  if (threads > 1 && args.people < 4 * threads) {
    const std::int64_t pieces = (4 * threads + args.people - 1) / args.people;
    piece = ((args.pixels + pieces - 1) / pieces + kGrain - 1) / kGrain * kGrain;
  }
  const std::int64_t pieces = (args.pixels + piece - 1) / piece, tasks = pieces * args.people;
  threads = static_cast<int>(std::clamp<std::int64_t>(threads, 1, tasks));

#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (std::int64_t task = 0; task < tasks; ++task) {
    const std::int64_t n = task / pieces, first = task % pieces * piece;
    const std::int64_t last = std::min(first + piece, args.pixels);
    InputsSpan<Storage> span;
    span.crops = args.crops + (n * args.pixels + first) * 3;
    span.map = args.map + n * args.pixels + first;
    span.out = out + n * inputs * plane + first * 3;
    span.plane = plane;
    span.pixels = last - first;
    span.args = &args;
    span.empty = is_empty(args.map + n * args.pixels, args.pixels);
    const std::int64_t done = blocks(span);
    span.crops += done * 3;
    span.map += done;
    span.out += done * 3;
    span.pixels -= done;
    if (span.pixels) mgran::inputs_portable<T>(span);
  }
}

}  // namespace

int mgran::inputs_prepared(const MgranInputs& args, int threads, bool stream) {
  if (args.people == 0 || args.pixels == 0) return MGRAN_OK;
  switch (args.dtype) {
    case MGRAN_FLOAT32:
      run<Float32>(args, threads, stream);
      return MGRAN_OK;
    case MGRAN_FLOAT16:
      run<Float16>(args, threads, stream);
      return MGRAN_OK;
    case MGRAN_BFLOAT16:
      run<BFloat16>(args, threads, stream);
      return MGRAN_OK;
    default:
      return MGRAN_UNSUPPORTED;
  }
}

extern "C" int mgran_inputs_cpu(const MgranInputs* args, int threads) {
  const bool stream = mgran::prepare_output(args->out, mgran::inputs_bytes(*args));
  return mgran::inputs_prepared(*args, threads, stream);
}
