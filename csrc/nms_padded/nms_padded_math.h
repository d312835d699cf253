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

struct NmsRules {
  float iou_threshold;    // 0..1; a box goes if its IoU with a better one is more than this
  float score_threshold;  // with has_score_threshold: a box takes part only if its score is more than this
  bool has_score_threshold;
  int64_t max_output;  // boxes kept of an image, at most

  // The IoU is float32 and is compared with a float64: it is more than that exactly if it is more than the next
  // float32 below.
  static float rounded_down(double threshold) {
    const float rounded = static_cast<float>(threshold);
    return static_cast<double>(rounded) > threshold ? std::nextafter(rounded, -INFINITY) : rounded;
  }
};

LIBRA_FORMULA float signed_area(const Box<float>& box) { return (box.x2 - box.x1) * (box.y2 - box.y1); }

// Whether the IoU can be more than the threshold; surely so if it is: t * union < intersection survives rounding as <=.
LIBRA_FORMULA bool may_suppress(const Box<float>& a, float area_a, const Box<float>& b, float area_b, float threshold) {
  const float inter = intersection(a, b);
  return inter >= threshold * (area_a + area_b - inter);
}

// Areas are those of signed_area().
LIBRA_FORMULA bool suppresses(const Box<float>& a, float area_a, const Box<float>& b, float area_b, float threshold) {
  const float inter = intersection(a, b);
  return inter / (area_a + area_b - inter) > threshold;
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
