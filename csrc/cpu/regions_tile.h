// The inner loops of regions_label.h in vectors of kLanes floats. Included once for each instruction set by
// regions_lanes.h, inside a namespace that has the vectors; hence no #pragma once.

MGRAN_TARGET inline void find_candidates(const Person& p, float x, float y, Candidates& out) {
  alignas(64) Floats lower[MGRAN_MAX_LIMBS / kLanes];
  const Floats cx = set(x), cy = set(y), zero = set(0.0f), one = set(1.0f);
  Floats bound = set(std::numeric_limits<float>::infinity());
  for (int i = 0; i < p.count; i += kLanes) {
    const Floats dx = load(p.dx + i), dy = load(p.dy + i), reach = load(p.reach + i);
    const Floats ux = sub(cx, load(p.x + i)), uy = sub(cy, load(p.y + i));
    const Floats t = least(most(mul(add(mul(ux, dx), mul(uy, dy)), load(p.inverse + i)), zero), one);
    const Floats ex = sub(ux, mul(t, dx)), ey = sub(uy, mul(t, dy));
    const Floats distance = root(mul(add(mul(ex, ex), mul(ey, ey)), load(p.weight + i)));
    lower[i / kLanes] = sub(least(distance, set(kLeastOverflow)), reach);
    bound = least(add(distance, reach), bound);  // NaN bounds nothing
  }
  const float greatest = least_lane(bound) * kSlackFactor + kSlackRoot;
  std::uint64_t near = 0;
  for (int i = 0; i < p.count; i += kLanes)
    near |= static_cast<std::uint64_t>(not_greater(lower[i / kLanes], set(greatest))) << i;
  near &= (std::uint64_t{1} << p.count) - 1;
  std::uint32_t groups = 0;
  out.count = 0;
  for (; near; near &= near - 1) {
    const int i = __builtin_ctzll(near);
    groups |= 1u << p.limbs[i].group;
    out.limb[out.count++] = i;
  }
  out.group = one_group(p, out, groups, greatest);
}

// Which pixels are inside the torso, in kRows rows of the map from `row` on: inside_torso() in its order.
MGRAN_TARGET MGRAN_INLINE void mark_torso(const Joints& j, Floats px, int row, Mask* inside /* [kRows] */) {
  for (int r = 0; r < kRows; ++r) {
    const float y = static_cast<float>(row + r) + 0.5f;
    Mask odd = no_lanes(), edge = no_lanes();
    for (int c = 0; c < 4; ++c) {
      const int a = corner(c), b = corner((c + 1) % 4);
      const float ay = j.y[a], by = j.y[b], dx = j.x[b] - j.x[a], dy = by - ay;
      if ((ay > y) == (by > y)) continue;
      const Floats side = sub(mul(sub(px, set(j.x[a])), set(dy)), set((y - ay) * dx));
      const Floats zero = set(0.0f);
      odd = exclusive(odd, by > ay ? less(side, zero) : less(zero, side));
      edge = any(edge, equal(side, zero));
    }
    inside[r] = any(odd, edge);
  }
}

MGRAN_TARGET inline void label_tile(const Person& p, const Candidates& candidates, bool torso, int x, int y,
                                    std::uint8_t* out /* [kTileHeight, kTileWidth] */) {
  const Floats zero = set(0.0f), one = set(1.0f);
  for (int part = 0; part < kTileWidth; part += kLanes) {
    const Floats px = add(count_from(x + part), set(0.5f));
    for (int row = 0; row < kTileHeight; row += kRows) {
      Floats distance[kRows];
      Ints group[kRows];
      for (int r = 0; r < kRows; ++r) {
        distance[r] = set(std::numeric_limits<float>::infinity());
        group[r] = set(0);
      }
      if (torso) {
        Mask inside[kRows];
        mark_torso(p.joints, px, y + row, inside);
        for (int r = 0; r < kRows; ++r) {
          distance[r] = choose(inside[r], zero, distance[r]);
          group[r] = choose(inside[r], set(static_cast<std::int32_t>(p.torso_group)), group[r]);
        }
      }
      for (int k = 0; k < candidates.count; ++k) {
        const Limb& limb = p.limbs[candidates.limb[k]];
        const Floats dx = set(limb.dx), dy = set(limb.dy), inverse = set(limb.inverse), weight = set(limb.weight);
        const Floats ux = sub(px, set(limb.x)), along = mul(ux, dx);
        for (int r = 0; r < kRows; ++r) {
          // limb_distance(), its operations in its order.
          const Floats uy = set(static_cast<float>(y + row + r) + 0.5f - limb.y);
          const Floats t = least(most(mul(add(along, mul(uy, dy)), inverse), zero), one);
          const Floats ex = sub(ux, mul(t, dx)), ey = sub(uy, mul(t, dy));
          const Floats d = mul(add(mul(ex, ex), mul(ey, ey)), weight);
          const Mask nearer = less(d, distance[r]);
          distance[r] = choose(nearer, d, distance[r]);
          group[r] = choose(nearer, set(limb.group), group[r]);
        }
      }
      for (int r = 0; r < kRows; ++r) store_bytes(group[r], out + (row + r) * kTileWidth + part);
    }
  }
}
