// Which box suppresses which, and the order in which boxes are taken: torchvision's, bit for bit.
//
// torchvision divides by the union as it is: two boxes without area have the IoU 0 / 0, and do not suppress each other.
// An area is negative where one side of a box is inverted; then its intersection with any box is 0.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "box_iou/box_iou_math.h"

namespace libra {

// "The float32 quotient is more than this number", without a division.
struct IouBound {
  float below;   // the next float32 that is not more than the number
  double exact;  // half way to the one above: what rounds to more than `below` is more than this, and nothing else is.
                 // Quotients of float32 numbers are never half way between two of them.

  static IouBound make(double number) {
    float below = static_cast<float>(number);
    if (static_cast<double>(below) > number) below = std::nextafter(below, -INFINITY);
    return {below, (static_cast<double>(below) + static_cast<double>(std::nextafter(below, 2.0f))) / 2};
  }
};

struct NmsRules {
  IouBound iou;           // 0..1; a box goes if its IoU with a better one is more than this
  float score_threshold;  // with has_score_threshold: a box takes part only if its score is more than this
  bool has_score_threshold;
  int64_t max_output;  // boxes kept of an image, at most
};

LIBRA_FORMULA float signed_area(const Box<float>& box) { return (box.x2 - box.x1) * (box.y2 - box.y1); }

// Areas are those of signed_area(). False only where the IoU is surely not more: bound * union < intersection, which is
// so for those that are more, survives rounding as <=.
LIBRA_FORMULA bool may_suppress(const Box<float>& a, float area_a, const Box<float>& b, float area_b,
                                const IouBound& bound) {
  const float inter = intersection(a, b);
  return inter >= bound.below * (area_a + area_b - inter);
}

// The IoU is more than the bound. The product of two float32 numbers and a bit is exact in float64. The union is
// positive where the intersection is.
LIBRA_FORMULA bool suppresses(const Box<float>& a, float area_a, const Box<float>& b, float area_b,
                              const IouBound& bound) {
  const float inter = intersection(a, b);
  return inter > 0.0f && static_cast<double>(inter) > bound.exact * static_cast<double>(area_a + area_b - inter);
}

LIBRA_FORMULA bool is_finite(const Box<float>& box) {
  return box.x1 - box.x1 == 0.0f && box.y1 - box.y1 == 0.0f && box.x2 - box.x2 == 0.0f && box.y2 - box.y2 == 0.0f;
}

// A number that is smaller the higher the score is; of 0 and -0 the same.
LIBRA_FORMULA uint32_t score_rank(float score) {
  const float value = score + 0.0f;  // -0 becomes 0
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits >> 31 ? bits : ~(bits | 0x80000000u);
}

}  // namespace libra
