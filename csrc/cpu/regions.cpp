// `regions` on the CPU: binarize, find the mask's box, label by the nearest limb, fill rectangles.
#include "../regions.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "../device/regions.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

using mgran::Box;
using mgran::Joints;
using mgran::Limb;
using mgran::Taps;

// What labelling the pixels of one person takes.
struct Person {
  Joints joints;
  Limb limbs[MGRAN_MAX_LIMBS];
  int limb_count;
  bool torso;
  Box box;
};

struct Scratch {
  std::vector<double> row;      // [mask_width] one output row, vertically resampled
  std::vector<float> distance;  // [width]
};

int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

double quantize(std::uint8_t v) { return v; }
// nearbyint rounds half to even, as the reference's round() does.
double quantize(float v) { return std::nearbyint(static_cast<double>(v) * mgran::kMaskSteps); }

template <typename T>
void binarize_row(const MgranRegions& args, const T* mask /* [mask_height, mask_width] */, int y,
                  const std::vector<Taps>& columns, Scratch& scratch, std::uint8_t* out /* [width] */) {
  const int width = args.width, mask_width = args.mask_width;
  if (args.mask_height == args.height && mask_width == width) {
    const T* row = mask + static_cast<std::int64_t>(y) * width;
    for (int x = 0; x < width; ++x) out[x] = quantize(row[x]) >= args.limit;
    return;
  }
  const Taps t = mgran::taps(y, args.mask_height, args.height);
  const T* upper = mask + static_cast<std::int64_t>(t.first) * mask_width;
  const T* lower = mask + static_cast<std::int64_t>(t.second) * mask_width;
  for (int x = 0; x < mask_width; ++x) scratch.row[x] = quantize(upper[x]) * t.low + quantize(lower[x]) * t.high;
  for (int x = 0; x < width; ++x) {
    const Taps& c = columns[x];
    out[x] = scratch.row[c.first] * c.low + scratch.row[c.second] * c.high >= args.limit;
  }
}

Box bounding_box(const std::uint8_t* map /* [height, width] */, int height, int width) {
  Box box{height, 0, width, 0};
  for (int y = 0; y < height; ++y) {
    const std::uint8_t* row = map + static_cast<std::int64_t>(y) * width;
    int first = 0, last = width;
    while (first < width && !row[first]) ++first;
    if (first == width) continue;
    while (!row[last - 1]) --last;
    box.top = std::min(box.top, y);
    box.bottom = y + 1;
    box.left = std::min(box.left, first);
    box.right = std::max(box.right, last);
  }
  return box.bottom ? box : Box{0, 0, 0, 0};
}

Person prepare(const MgranRegions& args, std::int64_t n, const std::uint8_t* map) {
  Person person;
  person.joints = mgran::find_joints(args.keypoints + n * 51, args.height, args.width, args.keypoint_threshold);
  person.limb_count = 0;
  for (int i = 0; i < args.layout.limb_count; ++i)
    person.limb_count += mgran::prepare_limb(person.joints, args.layout, i, person.limbs[person.limb_count]);
  person.torso = args.layout.torso && mgran::has_torso(person.joints);
  person.box = bounding_box(map, args.height, args.width);
  return person;
}

// Turns the 0/1 row into group numbers.
void label_row(const MgranRegions& args, const Person& person, int y, Scratch& scratch, std::uint8_t* row) {
  const Box& box = person.box;
  if (y < box.top || y >= box.bottom) return;
  if (person.limb_count == 0) {
    for (int x = box.left; x < box.right; ++x)
      if (row[x]) row[x] = mgran::band_of(args.layout, box, y, x);
    return;
  }
  const float py = static_cast<float>(y) + 0.5f;
  float* distance = scratch.distance.data();
  // `row` carries the winner's group while limbs go by; background is put back by the sign bit of the mask.
  constexpr std::uint8_t kForeground = 0x80;
  for (int x = box.left; x < box.right; ++x) {
    const bool inside = person.torso && mgran::inside_torso(person.joints, static_cast<float>(x) + 0.5f, py);
    distance[x] = inside ? 0.0f : std::numeric_limits<float>::infinity();
    row[x] = static_cast<std::uint8_t>((row[x] ? kForeground : 0) | (inside ? args.layout.torso : 0));
  }
  for (int i = 0; i < person.limb_count; ++i) {
    const Limb limb = person.limbs[i];
    for (int x = box.left; x < box.right; ++x) {
      const float d = mgran::limb_distance(limb, static_cast<float>(x) + 0.5f, py);
      const bool nearer = d < distance[x];
      distance[x] = nearer ? d : distance[x];
      row[x] = nearer ? static_cast<std::uint8_t>((row[x] & kForeground) | limb.group) : row[x];
    }
  }
  for (int x = box.left; x < box.right; ++x) row[x] = row[x] & kForeground ? row[x] & 0x7f : 0;
}

void fill_rectangles(std::uint8_t* map /* [height, width] */, int regions, int height, int width) {
  Box boxes[MGRAN_MAX_REGIONS + 1];
  std::fill_n(boxes, MGRAN_MAX_REGIONS + 1, Box{height, 0, width, 0});
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x) {
      Box& box = boxes[map[static_cast<std::int64_t>(y) * width + x]];
      box.top = std::min(box.top, y);
      box.bottom = y + 1;
      box.left = std::min(box.left, x);
      box.right = std::max(box.right, x + 1);
    }
  for (int group = 1; group <= regions; ++group)
    for (int y = boxes[group].top; y < boxes[group].bottom; ++y)
      for (int x = boxes[group].left; x < boxes[group].right; ++x) {
        std::uint8_t& pixel = map[static_cast<std::int64_t>(y) * width + x];
        if (!pixel) pixel = static_cast<std::uint8_t>(group);
      }
}

template <typename T>
void run(const MgranRegions& args, int threads) {
  const std::int64_t pixels = static_cast<std::int64_t>(args.height) * args.width;
  std::vector<Taps> columns(args.width);
  for (int x = 0; x < args.width; ++x) columns[x] = mgran::taps(x, args.mask_width, args.width);
  // Allocated out here: an exception must not leave an OpenMP region.
  std::vector<Scratch> scratches(threads,
                                 Scratch{std::vector<double>(args.mask_width), std::vector<float>(args.width)});
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (std::int64_t n = 0; n < args.people; ++n) {
    Scratch& scratch = scratches[thread_number()];
    const T* mask = static_cast<const T*>(args.mask) + n * args.mask_height * args.mask_width;
    std::uint8_t* map = args.map + n * pixels;
    for (int y = 0; y < args.height; ++y)
      binarize_row(args, mask, y, columns, scratch, map + static_cast<std::int64_t>(y) * args.width);
    const Person person = prepare(args, n, map);
    for (int y = 0; y < args.height; ++y)
      label_row(args, person, y, scratch, map + static_cast<std::int64_t>(y) * args.width);
    if (args.layout.rectangles) fill_rectangles(map, args.layout.regions, args.height, args.width);
  }
}

}  // namespace

extern "C" int mgran_regions_cpu(const MgranRegions* args, int threads) {
  if (args->people == 0 || args->height == 0 || args->width == 0) return 0;
  // One thread a person at most; a single person stays on the calling thread.
  threads = static_cast<int>(std::clamp<std::int64_t>(threads, 1, args->people));
  try {
    args->mask_is_float ? run<float>(*args, threads) : run<std::uint8_t>(*args, threads);
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
