// How the GPU finds a box's best target without a division per pair, and still gives the IoU of the formula bit by bit.
//
// With the intersection I and the sum of the areas S, IoU = I / (S - I) grows with I / S alone. So whoever knows the
// best I / S so far needs a product and a comparison to see that a target is worse; those of the IoU's rounding errors,
// and of the reciprocal that is only nearly one, are covered by margins. Errors of I / S, relative: what the formula's
// four roundings can hide is below 2^-20; the reciprocal and two products add less than 2^-21.
//
// Screenable boxes: all of this holds where nothing under- or overflows. A coordinate is screenable if it is 0 or
// between 2^-20 and 2^20 in magnitude: differences are then 0 or at least 2^-43, areas at most 2^42. A screenable
// target has an area of at least 2^-18 px^2 too, so that the union is never the formula's 1e-6. The rest, the odd ones,
// take the formula itself.
//
// x is kept times 2^-21, which is exact for such numbers: lengths in x are then at most 1, and their clamp at 0 is the
// adder's own saturation to [0, 1], which costs no instruction.
#pragma once

#include <cmath>

#include "common/block_reduce.cuh"
#include "match_boxes/match_boxes_math.h"

namespace libra {

constexpr float kScaleX = 1.0f / (1 << 21);
constexpr float kBelowRatio = 1.0f - 1.0f / (1 << 18);  // of the best I / S: whoever has less is certainly worse
constexpr float kAboveRatio = 1.0f + 1.0f / (1 << 16);  // of that bound: whoever has more is certainly better

LIBRA_HOST_DEVICE bool is_screenable(float coordinate) {
  const float magnitude = std::fabs(coordinate);
  return (magnitude >= 1.0f / (1 << 20) && magnitude <= (1 << 20)) || magnitude == 0;
}

LIBRA_HOST_DEVICE bool is_screenable(const Box<float>& box) {
  return is_screenable(box.x1) && is_screenable(box.y1) && is_screenable(box.x2) && is_screenable(box.y2);
}

LIBRA_HOST_DEVICE bool is_screenable_target(const Box<float>& target) {
  return is_screenable(target) && area(target) >= 1.0f / (1 << 18);
}

// The bound on I / S below which an IoU is certainly less than this one.
LIBRA_HOST_DEVICE float ratio_below(float iou) { return iou / (1.0f + iou) * kBelowRatio; }

#if defined(__CUDACC__) || defined(LIBRA_EMULATION)

__device__ __forceinline__ Box<float> load_box(const Box<float>* box) {
  const float4 four = *reinterpret_cast<const float4*>(box);
  return {four.x, four.y, four.z, four.w};
}

__device__ __forceinline__ Box<float> scaled(const Box<float>& box) {
  return {box.x1 * kScaleX, box.y1, box.x2 * kScaleX, box.y2};
}

// Of boxes scaled in x: the intersection where they overlap, and no positive number where they do not.
__device__ __forceinline__ float scaled_intersection(const Box<float>& a, const Box<float>& b) {
  return __saturatef(fminf(a.x2, b.x2) - fmaxf(a.x1, b.x1)) * (fminf(a.y2, b.y2) - fmaxf(a.y1, b.y1));
}

__device__ __forceinline__ bool overlaps(const Box<float>& a, const Box<float>& b) {
  return a.x1 < b.x2 && b.x1 < a.x2 && a.y1 < b.y2 && b.y1 < a.y2;
}

// Overlaps nothing.
__device__ __forceinline__ Box<float> nowhere() { return {INFINITY, INFINITY, -INFINITY, -INFINITY}; }

__device__ __forceinline__ Box<float> around(const Box<float>& a, const Box<float>& b) {
  return {fminf(a.x1, b.x1), fminf(a.y1, b.y1), fmaxf(a.x2, b.x2), fmaxf(a.y2, b.y2)};
}

// The smallest box around those of a warp, in every lane.
__device__ __forceinline__ Box<float> warp_hull(Box<float> hull) {
#pragma unroll
  for (int offset = 16; offset; offset /= 2) {
    hull.x1 = fminf(hull.x1, __shfl_xor_sync(kFullWarp, hull.x1, offset));
    hull.y1 = fminf(hull.y1, __shfl_xor_sync(kFullWarp, hull.y1, offset));
    hull.x2 = fmaxf(hull.x2, __shfl_xor_sync(kFullWarp, hull.x2, offset));
    hull.y2 = fmaxf(hull.y2, __shfl_xor_sync(kFullWarp, hull.y2, offset));
  }
  return hull;
}

// The formulas for any pair.
__device__ __forceinline__ float any_iou(const Box<float>& box, const Box<float>& target) {
  return pair_iou(box, area(box), is_huge(box), target, area(target), is_huge(target));
}

__device__ __forceinline__ float any_iof(const Box<float>& box, const Box<float>& region) {
  return pair_iof(box, area(box), is_huge(box), region, is_huge(region));
}

// Whether a crowd region holds more than half of the box; any box, any region.
__device__ __forceinline__ bool in_crowd(const Box<float>& box, const Box<float>* crowd, int count) {
#pragma unroll 1
  for (int c = 0; c < count; ++c) {
    const Box<float> region = load_box(crowd + c);
    if (is_real(region, true) && any_iof(box, region) > kCrowdShare) return true;
  }
  return false;
}

// What a lane knows of one of its boxes: an intersection and a union whose quotient is its highest IoU, and the bound
// on I / S below which a target is certainly worse.
struct Candidate {
  Box<float> box;  // scaled; empty for an odd one
  float area, inter, joint, low, low_area;
  int target;

  __device__ __forceinline__ void begin(const Box<float>& scaled_box) {
    box = scaled_box, area = libra::area(scaled_box);
    inter = 0.0f, joint = 1.0f, low = 0.0f, low_area = 0.0f, target = 0;
  }

  __device__ __forceinline__ float iou() const { return inter / joint; }

  // The target has the intersection `found` with the box, beyond the bound. Of equal ones the first stays.
  __device__ __forceinline__ void compare(float found, float target_area, int number) {
    const float sum = area + target_area, rest = sum - found;
    if (found > low * kAboveRatio * sum || found / rest > iou()) {
      inter = found, joint = rest, target = number;
      low = found * approximate_reciprocal(sum) * kBelowRatio;
      low_area = low * area;
    }
  }
};

#endif

}  // namespace libra
