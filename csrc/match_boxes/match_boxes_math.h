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

// IoU of a box with a real target, and the share of a box inside a real region; 0 for a box that is not finite.
LIBRA_HOST_DEVICE float pair_iou(const Box<float>& box, float box_area, bool box_huge, const Box<float>& target,
                                 float target_area, bool target_huge) {
  if (!box_huge && !target_huge) return iou(box, box_area, target, target_area);
  return is_finite(box) ? overlap_huge<Kind::kIou>(box, target) : 0.0f;
}

LIBRA_HOST_DEVICE float pair_iof(const Box<float>& box, float box_area, bool box_huge, const Box<float>& region,
                                 bool region_huge) {
  if (!box_huge && !region_huge) return iof(box, box_area, region);
  return is_finite(box) ? overlap_huge<Kind::kIof>(box, region) : 0.0f;
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
