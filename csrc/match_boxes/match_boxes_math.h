// Rules of the matching that the CPU and the GPU share: which targets count, when a box is ignored, and its state.
#pragma once

#include "box_iou/box_iou_math.h"

namespace libra {

constexpr signed char kPositive = 1, kNegative = 0, kIgnored = -1;
constexpr float kCrowdShare = 0.5f;  // a box with more than this share of its own area inside a crowd region is ignored

struct MatchRules {
  float positive_iou, negative_iou;
  float min_positive_iou;  // a target's best box is positive from this IoU on
  bool low_quality;        // whether that rule applies
};

LIBRA_HOST_DEVICE bool is_finite(const Box<float>& box) {
  return box.x1 - box.x1 == 0 && box.y1 - box.y1 == 0 && box.x2 - box.x2 == 0 && box.y2 - box.y2 == 0;
}

// A target that can be found: marked valid, finite, with an area.
LIBRA_HOST_DEVICE bool is_real(const Box<float>& target, bool valid) {
  return valid && is_finite(target) && area(target) > 0;
}

// The state that the highest IoU alone gives.
LIBRA_HOST_DEVICE signed char state_of(float iou, bool any_target, const MatchRules& rules) {
  if (!any_target) return kNegative;
  return iou >= rules.positive_iou ? kPositive : iou < rules.negative_iou ? kNegative : kIgnored;
}

// Whether a target whose best IoU is `top` claims the boxes that reach it.
LIBRA_HOST_DEVICE bool claims(float top, const MatchRules& rules) {
  return top > 0.0f && top >= rules.min_positive_iou;
}

}  // namespace libra
