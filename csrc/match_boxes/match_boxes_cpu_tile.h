// A tile: up to 2048 boxes of an image in the form in which match_boxes_cpu_kernel.cpp compares them with targets.
//
// One array per coordinate, and groups of 32 neighbours with the hull of each: a target outside of a group's hull
// overlaps none of its boxes. Anchors come in an order in which neighbours lie side by side. Proposals come in any
// order; then the tile is sorted by position first (a counting sort along a space-filling curve), so that most pairs
// of a group and a target are settled by the hull alone. Results return to the order of the image.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/vector_clones.h"
#include "match_boxes/match_boxes_math.h"

namespace libra {
namespace {

constexpr int kTile = 2048;  // boxes: 74 KB of scratch
constexpr int kGroup = 32;   // boxes that are compared with a target at a time: two vectors of AVX-512
constexpr int kGroups = kTile / kGroup;
// Elements of an array: a group's boxes lie 128 bytes further in each than in the one before. At equal distances from
// the begin of a page, reads would wait for writes to the other arrays.
constexpr int kRow = kTile + 32;
constexpr int kGridBits = 4;  // a tile is sorted into 16 x 16 cells
constexpr int kCells = 1 << 2 * kGridBits;

LIBRA_FORMULA bool apart(const Box<float>& a, const Box<float>& b) {
  return a.x1 >= b.x2 || b.x1 >= a.x2 || a.y1 >= b.y2 || b.y1 >= a.y2;
}

struct Tile {
  alignas(64) float x1[kRow], y1[kRow], x2[kRow], y2[kRow], area[kRow];
  alignas(64) float best[kRow];     // highest IoU so far
  alignas(64) int32_t index[kRow];  // its target
  alignas(64) int32_t keep[kRow];   // 0 for an ignored box, else all bits
  alignas(64) int32_t place[kRow];  // of a sorted tile: where the box stands in the image, from the tile's first on
  Box<float> hulls[kGroups];        // of a group's boxes; without bounds if one is huge
  bool huge[kGroups];               // whether one is
  Box<float> hull;
  int count, groups;
  bool sorted;

  LIBRA_FORMULA Box<float> box(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i]}; }
  LIBRA_FORMULA void set_box(int64_t i, const Box<float>& box) {
    x1[i] = box.x1, y1[i] = box.y1, x2[i] = box.x2, y2[i] = box.y2;
  }
  float iou_with(int64_t i, const Box<float>& target, float target_area) const {
    return pair_iou(box(i), area[i], is_huge(box(i)), target, target_area, is_huge(target));
  }
  LIBRA_FORMULA int place_of(int i) const { return sorted ? place[i] : i; }
};

// A number's bits, and integers in the order of numbers: compilers turn the minimum or maximum of many integers into
// vector code, and that of floating-point numbers not. Of numbers that are not negative the bits themselves are in
// order.
LIBRA_FORMULA int32_t bits_of(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
LIBRA_FORMULA float of_bits(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
LIBRA_FORMULA int32_t ordered(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }  // its own inverse

LIBRA_FORMULA Box<float> joint_hull(const Box<float>& a, const Box<float>& b) {
  return {minimum(a.x1, b.x1), minimum(a.y1, b.y1), maximum(a.x2, b.x2), maximum(a.y2, b.y2)};
}

// Everything that follows from the coordinates. The last group is filled up with the last box.
LIBRA_FORMULA void describe(Tile& tile, int count, bool sorted) {
  tile.count = count, tile.groups = (count + kGroup - 1) / kGroup, tile.sorted = sorted;
  for (int i = count; i < tile.groups * kGroup; ++i) tile.set_box(i, tile.box(count - 1));
  tile.hull = {INFINITY, INFINITY, -INFINITY, -INFINITY};
  for (int g = 0; g < tile.groups; ++g) {
    const int64_t at = int64_t(g) * kGroup;
    int32_t left = INT32_MAX, top = INT32_MAX, right = INT32_MIN, bottom = INT32_MIN, size = 0;
    for (int i = 0; i < kGroup; ++i) {
      tile.area[at + i] = area(tile.box(at + i));
      tile.best[at + i] = 0.0f;
      tile.index[at + i] = 0;
      tile.keep[at + i] = -1;
      const int32_t x1 = bits_of(tile.x1[at + i]), y1 = bits_of(tile.y1[at + i]);
      const int32_t x2 = bits_of(tile.x2[at + i]), y2 = bits_of(tile.y2[at + i]);
      left = std::min(left, ordered(x1)), top = std::min(top, ordered(y1));
      right = std::max(right, ordered(x2)), bottom = std::max(bottom, ordered(y2));
      size =
          std::max(size, std::max(std::max(x1 & INT32_MAX, y1 & INT32_MAX), std::max(x2 & INT32_MAX, y2 & INT32_MAX)));
    }
    tile.huge[g] = is_huge(of_bits(size));
    tile.hulls[g] = {of_bits(ordered(left)), of_bits(ordered(top)), of_bits(ordered(right)), of_bits(ordered(bottom))};
    if (tile.huge[g]) {
      tile.hulls[g] = {-INFINITY, -INFINITY, INFINITY, INFINITY};
      for (int i = 0; i < kGroup; ++i) tile.keep[at + i] = is_finite(tile.box(at + i)) ? -1 : 0;
    }
    tile.hull = joint_hull(tile.hull, tile.hulls[g]);
  }
}

LIBRA_VECTOR_CLONES
void load_tile(const Box<float>* boxes, int count, Tile& tile) {
  for (int i = 0; i < count; ++i) tile.set_box(i, boxes[i]);
  describe(tile, count, false);
}

// Whether neighbours lie so far apart that the hull of a group would say little, judged from a few groups: their hulls
// fill more than half of what they span together, `frame`.
inline bool is_scattered(const Box<float>* boxes, int count, Box<float>& frame) {
  constexpr int kSamples = 4;
  if (count < kSamples * kGroup) return false;
  float areas = 0;
  for (int sample = 0; sample < kSamples; ++sample) {
    const Box<float>* group = boxes + (count - kGroup) * sample / (kSamples - 1);
    Box<float> hull = group[0];
    for (int i = 1; i < kGroup; ++i) hull = joint_hull(hull, group[i]);
    areas += area(hull);
    frame = sample == 0 ? hull : joint_hull(frame, hull);
  }
  return !is_huge(frame) && areas > 0.5f * kSamples * area(frame);
}

// The number of a cell along Hilbert's curve: cells that follow one another are neighbours.
struct HilbertCurve {
  uint8_t position[kCells];
  constexpr HilbertCurve() : position() {
    for (int cell = 0; cell < kCells; ++cell) {
      int x = cell % (1 << kGridBits), y = cell >> kGridBits, walked = 0;
      for (int side = 1 << (kGridBits - 1); side > 0; side /= 2) {
        const int right = (x & side) != 0, below = (y & side) != 0;
        walked += side * side * ((3 * right) ^ below);
        if (!below) {
          if (right) x = ~x, y = ~y;
          const int swapped = x;
          x = y, y = swapped;
        }
      }
      position[cell] = static_cast<uint8_t>(walked);
    }
  }
};
constexpr HilbertCurve kHilbert;

// Loads boxes in the order of their cells, which divide the frame; a box outside is taken to be at its edge.
LIBRA_VECTOR_CLONES
void load_sorted_tile(const Box<float>* boxes, int count, const Box<float>& frame, Tile& tile) {
  constexpr int kSide = 1 << kGridBits;
  const float left = 2 * frame.x1, top = 2 * frame.y1, last = kSide - 1;  // twice, as x1 + x2 is of a centre
  const float x_scale = kSide * 0.5f / at_least(frame.x2 - frame.x1, 1e-18);
  const float y_scale = kSide * 0.5f / at_least(frame.y2 - frame.y1, 1e-18);
  int32_t* cells = tile.index;  // which describe() writes only later
  for (int i = 0; i < count; ++i) {
    // Limits that a NaN does not pass: a conversion of it would be undefined.
    const float x = minimum(at_least((boxes[i].x1 + boxes[i].x2 - left) * x_scale, 0.0), last);
    const float y = minimum(at_least((boxes[i].y1 + boxes[i].y2 - top) * y_scale, 0.0), last);
    cells[i] = static_cast<int32_t>(y) * kSide + static_cast<int32_t>(x);
  }
  int32_t next[kCells + 1] = {};
  for (int i = 0; i < count; ++i) {
    cells[i] = kHilbert.position[cells[i]];
    ++next[cells[i] + 1];
  }
  for (int cell = 0; cell < kCells; ++cell) next[cell + 1] += next[cell];
  for (int i = 0; i < count; ++i) {
    tile.place[next[cells[i]]++] = i;
  }
  for (int i = 0; i < count; ++i) tile.set_box(i, boxes[tile.place[i]]);
  describe(tile, count, true);
}

LIBRA_VECTOR_CLONES
void ignore_crowd(Tile& tile, const Box<float>& region) {
  for (int g = 0; g < tile.groups; ++g) {
    const int64_t at = int64_t(g) * kGroup;
    if (apart(tile.hulls[g], region)) continue;
    if (tile.huge[g] || is_huge(region)) {
      for (int i = 0; i < kGroup; ++i) {
        const Box<float> box = tile.box(at + i);
        const float share = pair_iof(box, tile.area[at + i], is_huge(box), region, is_huge(region));
        if (share > kCrowdShare) tile.keep[at + i] = 0;
      }
    } else {
      for (int i = 0; i < kGroup; ++i) {
        const float share = iof(tile.box(at + i), tile.area[at + i], region);
        tile.keep[at + i] = share > kCrowdShare ? 0 : tile.keep[at + i];
      }
    }
  }
}

// Writes what is known of the tile's boxes; the pointers stand at the tile's first box.
LIBRA_VECTOR_CLONES
void store_tile(const Tile& tile, bool any_target, const MatchRules& rules_in, int64_t* index, float* iou,
                signed char* state) {
  const MatchRules rules = rules_in;  // a copy that stores through char pointers cannot change
  signed char states[kTile];
  for (int i = 0; i < tile.groups * kGroup; ++i) {
    const signed char found = tile.best[i] >= rules.positive_iou  ? kPositive
                              : tile.best[i] < rules.negative_iou ? kNegative
                                                                  : kIgnored;
    states[i] = tile.keep[i] == 0 ? kIgnored : any_target ? found : kNegative;
  }
  if (tile.sorted) {
    for (int i = 0; i < tile.count; ++i) {
      const int place = tile.place[i];
      index[place] = tile.index[i], iou[place] = tile.best[i], state[place] = states[i];
    }
  } else {
    for (int i = 0; i < tile.count; ++i) index[i] = tile.index[i];
    std::memcpy(iou, tile.best, sizeof(float) * tile.count);
    std::memcpy(state, states, tile.count);
  }
}

}  // namespace
}  // namespace libra
