// The plan of `network` on the CPU: which cells of every layer are computed, and where they lie.
//
// Of a person, forwards: which regions' pixels can influence a cell. An input's cell that its region cannot influence
// is the background's; one that no other region can influence is that of the whole person's input. Backwards, from the
// cells that are pooled: which of the others the result depends on.
#include <algorithm>
#include <cstddef>
#include <new>
#include <utility>
#include <vector>

#include "../network.h"
#include "cells.h"
#include "reach.h"
#include "threads.h"

namespace {

using mgran::Bits;
using mgran::Geometry;
using mgran::Grid;

// Bit r of a set is region r. In what influences a cell, bit 0 are pixels of no region that has an input (and all
// pixels of a person whose map is empty); in what is computed, it is the input of the whole person.
constexpr Bits kWhole = 1;

Grid grid_of(const MgranLayer& layer) { return {layer.height, layer.width}; }
Geometry geometry_of(const MgranStep& step, int source) {
  return {step.kernel[source], step.stride[source], step.padding[source]};
}

// Where the tables of each layer begin, for one image.
std::vector<std::size_t> starts_of(const MgranNetwork& network) {
  std::vector<std::size_t> starts(1, 0);
  for (std::int64_t i = 0; i <= network.count; ++i)
    starts.push_back(starts.back() + grid_of(network.layers[i]).cells());
  return starts;
}

// The sets of one person's layers, one after another.
class Person {
 public:
  Person(const MgranNetwork& network, const MgranPeople& people, const std::vector<std::size_t>& starts)
      : network_(network), people_(people), starts_(starts), reach_(starts.back()), need_(starts.back()) {}

  void plan(const std::uint8_t* map) {
    std::fill(reach_.begin(), reach_.end(), Bits{0});
    std::fill(need_.begin(), need_.end(), Bits{0});
    mark(map);
    for (std::int64_t i = 0; i < network_.count; ++i) {
      const MgranStep& step = network_.steps[i];
      for (int s = 0; s < step.count; ++s)
        mgran::influence(reach(step.source[s]), grid(step.source[s]), geometry_of(step, s), reach(i + 1), grid(i + 1),
                         room_);
      if (step.residual >= 0)
        mgran::influence(reach(step.residual), grid(i + 1), {1, 1, 0}, reach(i + 1), grid(i + 1), room_);
    }
    // All that is pooled is computed, so that all that is read has been written.
    Bits* const last = need(network_.count);
    mgran::pooled(reach(0), grid(0), last, grid(network_.count));
    for (std::size_t i = 0; i < grid(network_.count).cells(); ++i)
      last[i] = static_cast<Bits>((last[i] & regions()) | (global() && last[i] ? kWhole : 0));
    for (std::int64_t i = network_.count; i-- > 0;) {
      const MgranStep& step = network_.steps[i];
      for (int s = 0; s < step.count; ++s) wanted(i + 1, step.source[s], geometry_of(step, s));
      if (step.residual >= 0) wanted(i + 1, step.residual, {1, 1, 0});
    }
  }

  const Bits* need(std::int64_t layer) const { return need_.data() + starts_[static_cast<std::size_t>(layer)]; }

  // Which input's cell a cell of the input under `region` is: its own, that of the whole person, or -1: the
  // background's.
  int kept(std::int64_t layer, std::size_t cell, int region) const {
    const std::size_t at = starts_[static_cast<std::size_t>(layer)] + cell;
    if (need_[at] >> region & 1) return region;
    return region && (need_[at] & kWhole) && alone(reach_[at], region) ? 0 : -1;
  }

 private:
  Grid grid(std::int64_t layer) const { return grid_of(network_.layers[layer]); }
  Bits* reach(std::int64_t layer) { return reach_.data() + starts_[static_cast<std::size_t>(layer)]; }
  Bits* need(std::int64_t layer) { return need_.data() + starts_[static_cast<std::size_t>(layer)]; }
  bool global() const { return people_.first == 0; }
  // The regions that have an input of their own.
  Bits regions() const {
    const int first = std::max(people_.first, 1), end = people_.first + people_.inputs;
    return static_cast<Bits>((1u << end) - (1u << first));
  }
  bool alone(Bits reach, int region) const { return global() && reach == static_cast<Bits>(1u << region); }

  void mark(const std::uint8_t* map) {
    Bits* const to = reach(0);
    const std::size_t pixels = grid(0).cells();
    const int last = people_.first + people_.inputs - 1;
    Bits every = 0;
    for (std::size_t i = 0; i < pixels; ++i) {
      to[i] = static_cast<Bits>(map[i] == 0 ? 0u : map[i] <= last ? 1u << map[i] : kWhole);
      every |= to[i];
    }
    if (!every) std::fill(to, to + pixels, kWhole);
  }

  // What the cells of `layer` need of those of `source`.
  void wanted(std::int64_t layer, std::int64_t source, const Geometry& geometry) {
    const std::size_t cells = grid(source).cells();
    seen_.assign(cells, 0);
    mgran::dependence(need(layer), grid(layer), geometry, seen_.data(), grid(source), room_);
    const Bits* const by = reach(source);
    Bits* const to = need(source);
    for (std::size_t i = 0; i < cells; ++i) {
      const Bits seen = seen_[i];
      if (!seen || !by[i]) continue;
      const Bits regions = static_cast<Bits>(seen & by[i] & ~kWhole);
      // One region alone, and nothing else: a power of two.
      const bool same = global() && !(by[i] & (by[i] - 1)) && by[i] != kWhole;
      to[i] |= static_cast<Bits>((seen & kWhole) | (same ? (regions ? kWhole : 0) : regions));
    }
  }

  const MgranNetwork& network_;
  const MgranPeople& people_;
  const std::vector<std::size_t>& starts_;
  std::vector<Bits> reach_, need_, seen_, room_;
};

constexpr std::int64_t kAlignment = 64;

// Places for layers that live from the step that makes them to the last one that reads them: first fit.
void place(const MgranNetwork& network, bool keep, MgranPlan& plan) {
  const std::size_t count = static_cast<std::size_t>(network.count);
  std::vector<std::int64_t> bytes(count + 1), last(count + 1, network.count);
  for (std::size_t layer = 0; layer <= count; ++layer) {
    const MgranLayer& l = network.layers[layer];
    bytes[layer] = plan.counts[layer] * l.channels * static_cast<std::int64_t>(mgran::size_of(l.dtype));
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

// All cells of all images.
void all(const MgranNetwork& network, std::int64_t images, const std::vector<std::size_t>& starts, MgranPlan& plan) {
  for (std::int64_t layer = 0; layer <= network.count; ++layer) {
    const std::size_t begin = starts[static_cast<std::size_t>(layer)] * static_cast<std::size_t>(images);
    plan.counts[layer] = images * static_cast<std::int64_t>(grid_of(network.layers[layer]).cells());
    for (std::int64_t i = 0; i < plan.counts[layer]; ++i)
      plan.index[begin + static_cast<std::size_t>(i)] = plan.places[begin + static_cast<std::size_t>(i)] =
          static_cast<std::int32_t>(i);
  }
}

// The tables of one person, whose first cell of each layer is number `first[layer]`.
void fill(const MgranNetwork& network, const MgranPeople& people, const std::vector<std::size_t>& starts,
          const Person& person, std::int64_t number, const std::int64_t* first, MgranPlan& plan) {
  const std::size_t images = static_cast<std::size_t>(people.people * people.inputs);
  for (std::int64_t layer = 0; layer <= network.count; ++layer) {
    const std::size_t cells = grid_of(network.layers[layer]).cells();
    const std::size_t begin = starts[static_cast<std::size_t>(layer)] * images;
    const std::size_t mine = begin + static_cast<std::size_t>(number * people.inputs) * cells;
    std::int32_t next = static_cast<std::int32_t>(first[layer]);
    for (std::int32_t input = 0; input < people.inputs; ++input) {
      const int region = people.first + input;
      std::int32_t* const index = plan.index + mine + static_cast<std::size_t>(input) * cells;
      for (std::size_t cell = 0; cell < cells; ++cell) {
        const int kept = person.kept(layer, cell, region);
        // The whole person's input comes first, so its cells have their numbers already.
        index[cell] = kept == region ? next : kept == 0 ? plan.index[mine + cell] : -1;
        if (kept == region)
          plan.places[begin + static_cast<std::size_t>(next++)] = static_cast<std::int32_t>(
              (number * people.inputs + input) * static_cast<std::int64_t>(cells) + static_cast<std::int64_t>(cell));
      }
    }
  }
}

void some(const MgranNetwork& network, const MgranPeople& people, const std::vector<std::size_t>& starts,
          MgranPlan& plan, [[maybe_unused]] int threads) {
  const std::size_t layers = static_cast<std::size_t>(network.count) + 1;
  const std::int64_t pixels = static_cast<std::int64_t>(people.height) * people.width;
  std::vector<Person> persons(static_cast<std::size_t>(people.people), Person(network, people, starts));
  // Of each person and layer: the number of its first cell.
  std::vector<std::int64_t> first((persons.size() + 1) * layers, 0);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (std::int64_t n = 0; n < people.people; ++n) {
    Person& person = persons[static_cast<std::size_t>(n)];
    person.plan(people.map + n * pixels);
    for (std::size_t layer = 0; layer < layers; ++layer) {
      const Bits* const need = std::as_const(person).need(static_cast<std::int64_t>(layer));
      std::int64_t& count = first[(static_cast<std::size_t>(n) + 1) * layers + layer];
      for (std::size_t cell = 0; cell < starts[layer + 1] - starts[layer]; ++cell)
        for (Bits left = need[cell]; left; left &= static_cast<Bits>(left - 1)) ++count;
    }
  }
  for (std::size_t i = layers; i < first.size(); ++i) first[i] += first[i - layers];
  std::copy(first.end() - static_cast<std::ptrdiff_t>(layers), first.end(), plan.counts);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (std::int64_t n = 0; n < people.people; ++n)
    fill(network, people, starts, persons[static_cast<std::size_t>(n)], n,
         first.data() + static_cast<std::size_t>(n) * layers, plan);
}

void make_plan(const MgranNetwork& network, const MgranPeople& people, bool whole, bool keep, MgranPlan& plan,
               int threads) {
  const std::vector<std::size_t> starts = starts_of(network);
  // More regions than a set has bits are no body layout; they are computed as a whole.
  if (whole || people.first + people.inputs - 1 > MGRAN_NETWORK_REGIONS)
    all(network, people.people * people.inputs, starts, plan);
  else
    some(network, people, starts, plan, threads);
  plan.multiply_adds = 0;
  for (std::int64_t i = 0; i < network.count; ++i) {
    const MgranStep& step = network.steps[i];
    for (int s = 0; s < step.count && !step.pool; ++s)
      plan.multiply_adds += plan.counts[i + 1] * network.layers[i + 1].channels * step.kernel[s] * step.kernel[s] *
                            network.layers[step.source[s]].channels;
  }
  place(network, keep, plan);
}

}  // namespace

extern "C" int mgran_network_plan_cpu(const MgranNetwork* network, const MgranPeople* people, std::int32_t whole,
                                      std::int32_t keep, MgranPlan* plan, int threads) {
  try {
    make_plan(*network, *people, whole != 0, keep != 0, *plan, threads < 1 ? 1 : threads);
    return MGRAN_OK;
  } catch (const std::bad_alloc&) {
    return MGRAN_NO_MEMORY;
  }
}
