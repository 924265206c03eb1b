// The plan of `network` on the CPU: which window of every layer is computed, and where it lies.
#include <algorithm>
#include <cstddef>
#include <new>
#include <vector>

#include "../network.h"
#include "cells.h"

namespace {

// Rows (or columns) from `first` to `end`, exclusive; empty where end <= first.
struct Span {
  std::int32_t first = 0, end = 0;

  bool empty() const { return end <= first; }
};

Span both(Span a, Span b) { return {std::max(a.first, b.first), std::min(a.end, b.end)}; }

Span either(Span a, Span b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  return {std::min(a.first, b.first), std::max(a.end, b.end)};
}

struct Box {
  Span rows, columns;

  bool empty() const { return rows.empty() || columns.empty(); }
};

Box both(const Box& a, const Box& b) { return {both(a.rows, b.rows), both(a.columns, b.columns)}; }

Box either(const Box& a, const Box& b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  return {either(a.rows, b.rows), either(a.columns, b.columns)};
}

struct Geometry {
  std::int32_t kernel, stride, padding;
};

std::int32_t quotient_up(std::int32_t a, std::int32_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }
std::int32_t quotient_down(std::int32_t a, std::int32_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// The outputs that see any of these inputs: o with o * stride - padding + [0, kernel) meeting the span.
Span influenced(Span in, const Geometry& g, std::int32_t side) {
  if (in.empty()) return {};
  return both(Span{quotient_up(in.first + g.padding - g.kernel + 1, g.stride),
                   quotient_down(in.end - 1 + g.padding, g.stride) + 1},
              Span{0, side});
}

// The inputs that these outputs see.
Span seen(Span out, const Geometry& g, std::int32_t side) {
  if (out.empty()) return {};
  return both(Span{out.first * g.stride - g.padding, (out.end - 1) * g.stride - g.padding + g.kernel}, Span{0, side});
}

// The cells of a grid of `cells` that pooling counts pixels of the span to: cell i has the pixels floor(i n / cells) to
// ceil((i + 1) n / cells), exclusive (mgran_fast/reference/pooling.py).
Span touched(Span pixels, std::int32_t n, std::int32_t cells) {
  if (pixels.empty()) return {};
  const std::int64_t wide = cells;
  std::int32_t first = static_cast<std::int32_t>(pixels.first * wide / n);
  std::int32_t end = static_cast<std::int32_t>((pixels.end * wide + n - 1) / n);
  // A pixel that two cells share: the one before has it too.
  if (first > 0 && (first * static_cast<std::int64_t>(n) + cells - 1) / cells > pixels.first) --first;
  return {first, std::min(end, cells)};
}

// The bounding boxes of a person's regions 0 to last in pixels; box 0 bounds all of them, or is the whole crop where
// there is none.
void bound(const std::uint8_t* map, std::int32_t height, std::int32_t width, std::vector<Box>& boxes) {
  const std::int32_t last = static_cast<std::int32_t>(boxes.size()) - 1;
  std::fill(boxes.begin(), boxes.end(), Box{});
  Box every;
  for (std::int32_t row = 0; row < height; ++row) {
    const std::uint8_t* const line = map + static_cast<std::size_t>(row) * static_cast<std::size_t>(width);
    for (std::int32_t column = 0; column < width;) {
      // Regions are runs of equal pixels.
      const std::uint8_t region = line[column];
      std::int32_t end = column + 1;
      while (end < width && line[end] == region) ++end;
      if (region) {
        const Box run{{row, row + 1}, {column, end}};
        every = either(every, run);
        if (region <= last) boxes[region] = either(boxes[region], run);
      }
      column = end;
    }
  }
  boxes[0] = every.empty() ? Box{{0, height}, {0, width}} : every;
}

void put(const Box& box, std::int32_t* window) {
  const bool empty = box.empty();
  window[0] = empty ? 0 : box.rows.first;
  window[1] = empty ? 0 : box.columns.first;
  window[2] = empty ? 0 : box.rows.end - box.rows.first;
  window[3] = empty ? 0 : box.columns.end - box.columns.first;
}

class Windows {
 public:
  explicit Windows(const MgranNetwork& network)
      : network_(network), count_(static_cast<std::size_t>(network.count)), reach_(count_ + 1), need_(count_ + 1) {}

  // For an image whose input is 0 outside of `box`, and of whose last layer the cells `wanted` are pooled.
  const std::vector<Box>& of(const Box& box, const Box& wanted) {
    reach_[0] = box;
    for (std::size_t i = 0; i < count_; ++i) {
      const MgranStep& step = network_.steps[i];
      const MgranLayer& made = network_.layers[i + 1];
      Box reach;
      for (int s = 0; s < step.count; ++s) {
        const Geometry g{step.kernel[s], step.stride[s], step.padding[s]};
        const Box& from = reach_[static_cast<std::size_t>(step.source[s])];
        if (!from.empty())
          reach = either(reach, {influenced(from.rows, g, made.height), influenced(from.columns, g, made.width)});
      }
      if (step.residual >= 0) reach = either(reach, reach_[static_cast<std::size_t>(step.residual)]);
      reach_[i + 1] = reach;
    }
    std::fill(need_.begin(), need_.end(), Box{});
    // All that is wanted is computed, so that all that is read has been written, whatever the geometry.
    need_[count_] = wanted;
    for (std::size_t i = count_; i-- > 0;) {
      const MgranStep& step = network_.steps[i];
      const Box& out = need_[i + 1];
      for (int s = 0; s < step.count && !out.empty(); ++s) {
        const std::size_t from = static_cast<std::size_t>(step.source[s]);
        const Geometry g{step.kernel[s], step.stride[s], step.padding[s]};
        const MgranLayer& layer = network_.layers[from];
        add(from, {seen(out.rows, g, layer.height), seen(out.columns, g, layer.width)});
      }
      if (step.residual >= 0 && !out.empty()) add(static_cast<std::size_t>(step.residual), out);
    }
    return need_;
  }

 private:
  // Nothing beyond the reach: there the background is the answer.
  void add(std::size_t layer, const Box& box) { need_[layer] = either(need_[layer], both(box, reach_[layer])); }

  MgranNetwork network_;
  std::size_t count_;
  std::vector<Box> reach_, need_;
};

constexpr std::int64_t kAlignment = 64;

// Places for layers that live from the step that makes them to the last one that reads them: first fit.
void place(const MgranNetwork& network, std::int64_t images, bool keep, MgranPlan& plan) {
  const std::size_t count = static_cast<std::size_t>(network.count);
  std::vector<std::int64_t> bytes(count + 1), last(count + 1, network.count);
  for (std::size_t layer = 0; layer <= count; ++layer) {
    const MgranLayer& l = network.layers[layer];
    const std::int32_t* const windows = plan.windows + static_cast<std::int64_t>(layer) * images * 4;
    std::int64_t cells = 0;
    for (std::int64_t i = 0; i < images; ++i)
      cells += static_cast<std::int64_t>(windows[4 * i + 2]) * windows[4 * i + 3];
    bytes[layer] = cells * l.channels * static_cast<std::int64_t>(mgran::size_of(l.dtype));
    bytes[layer] = (bytes[layer] + kAlignment - 1) / kAlignment * kAlignment;
  }
  if (!keep)
    for (std::size_t i = 0; i < count; ++i) {
      const MgranStep& step = network.steps[i];
      for (int s = 0; s < step.count; ++s)
        last[static_cast<std::size_t>(step.source[s])] = static_cast<std::int64_t>(i);
      if (step.residual >= 0) last[static_cast<std::size_t>(step.residual)] = static_cast<std::int64_t>(i);
    }
  struct Used {
    std::int64_t first, end, until;
  };
  std::vector<Used> used;  // sorted by place
  plan.bytes = 0;
  for (std::size_t layer = 0; layer < count; ++layer) {
    // Made by step layer - 1, while everything that is read by it or later is still there.
    const std::int64_t step = static_cast<std::int64_t>(layer) - 1;
    used.erase(std::remove_if(used.begin(), used.end(), [step](const Used& u) { return u.until < step; }), used.end());
    std::int64_t at = 0;
    auto next = used.begin();
    while (next != used.end() && next->first - at < bytes[layer]) {
      at = next->end;
      ++next;
    }
    plan.offsets[layer] = at;
    plan.bytes = std::max(plan.bytes, at + bytes[layer]);
    used.insert(next, {at, at + bytes[layer], last[layer]});
  }
  plan.offsets[count] = 0;
}

void make_plan(const MgranNetwork& network, const MgranPeople& people, bool whole, bool keep, MgranPlan& plan) {
  const std::size_t layers = static_cast<std::size_t>(network.count) + 1;
  const std::int64_t images = people.people * people.inputs;
  const MgranLayer& last = network.layers[layers - 1];
  Windows windows(network);
  std::vector<Box> boxes(static_cast<std::size_t>(people.first) + static_cast<std::size_t>(people.inputs));
  plan.multiply_adds = 0;
  for (std::int64_t image = 0; image < images; ++image) {
    if (image % people.inputs == 0 && !whole) {
      const std::int64_t pixels = static_cast<std::int64_t>(people.height) * people.width;
      bound(people.map + image / people.inputs * pixels, people.height, people.width, boxes);
    }
    const Box& box = boxes[static_cast<std::size_t>(people.first + image % people.inputs)];
    const Box wanted{touched(box.rows, people.height, last.height), touched(box.columns, people.width, last.width)};
    const std::vector<Box>* const found = whole ? nullptr : &windows.of(box, wanted);
    for (std::size_t layer = 0; layer < layers; ++layer) {
      const MgranLayer& l = network.layers[layer];
      std::int32_t* const window = plan.windows + (static_cast<std::int64_t>(layer) * images + image) * 4;
      put(found ? (*found)[layer] : Box{{0, l.height}, {0, l.width}}, window);
      if (layer == 0) continue;
      const MgranStep& step = network.steps[layer - 1];
      for (int s = 0; s < step.count && !step.pool; ++s)
        plan.multiply_adds += static_cast<std::int64_t>(window[2]) * window[3] * l.channels * step.kernel[s] *
                              step.kernel[s] * network.layers[step.source[s]].channels;
    }
  }
  place(network, images, keep, plan);
}

}  // namespace

extern "C" int mgran_network_plan_cpu(const MgranNetwork* network, const MgranPeople* people, std::int32_t whole,
                                      std::int32_t keep, MgranPlan* plan) {
  try {
    make_plan(*network, *people, whole != 0, keep != 0, *plan);
    return MGRAN_OK;
  } catch (const std::bad_alloc&) {
    return MGRAN_NO_MEMORY;
  }
}
