// 1 - overlap of one pair of boxes and its derivative, by the formulas of box_iou; and the decoding of a box from
// deltas.
#pragma once

#include <cmath>

#include "box_iou/box_iou_slope.h"
#include "common/log_scale.h"

namespace libra {

// atan(width / height) by a polynomial, which is vector code: of t in [0, 1] it is t p(t^2) with the polynomial p of
// the least relative error, 1.5e-8, and of 1 / t the rest of a right angle. A height is at least 1e-6.
struct PolynomialAngle {
  LIBRA_FORMULA static float of(float width, float height) {
    const bool flat = width > height;
    const float t = (flat ? height : width) / (flat ? width : height), s = t * t, square = s * s;
    const float first = multiply_add(s, -0.3333307335f, 0.9999999848f);
    const float second = multiply_add(s, -0.142036445f, 0.199926194f);
    const float third = multiply_add(s, -0.0750429477f, 0.1064093414f);
    const float fourth = multiply_add(s, -0.01606863047f, 0.04269152184f);
    const float low = multiply_add(square, second, first);
    const float high = multiply_add(square, multiply_add(square, 2.849889986e-3f, fourth), third);
    const float angle = t * multiply_add(square * square, high, low);
    return flat ? 1.570796327f - angle : angle;
  }
  LIBRA_FORMULA static double of(double width, double height) { return LibraryAngle::of(width, height); }
};

// Loss and its derivative by both boxes. Neither is_huge().
template <Kind kind, class T>
LIBRA_FORMULA void box_loss(const Box<T>& pred, const Box<T>& target, T& loss, Box<T>& slope, Box<T>& target_slope) {
  const Own<T> first = make_own<kind, PolynomialAngle>(pred), second = make_own<kind, PolynomialAngle>(target);
  loss = T(1) - overlap<kind>(first.side, second.side);
  SlopeSum<T> to_first{}, to_second{};
  add_slopes<kind, AnyDivision>(T(-1), first.side, first.area_counts, second.side, to_first, to_second);
  slope = total<kind>(to_first, first);
  target_slope = total<kind>(to_second, second);
}

// box_loss() of a pair with a box that is_huge().
template <Kind kind, class T>
LIBRA_FORMULA void box_loss_huge(const Box<T>& pred, const Box<T>& target, T& loss, Box<T>& slope,
                                 Box<T>& target_slope) {
  loss = T(1) - overlap_huge<kind>(pred, target);
  slope = overlap_slope_huge<kind, true>(pred, target);
  target_slope = overlap_slope_huge<kind, false>(target, pred);
  slope = {-slope.x1, -slope.y1, -slope.x2, -slope.y2};
  target_slope = {-target_slope.x1, -target_slope.y1, -target_slope.x2, -target_slope.y2};
}

// Four numbers of a box's: deltas (dx, dy, dw, dh), or what they are multiplied by.
template <class T>
struct Deltas {
  T x, y, w, h;
};

// A box from deltas, with the derivatives of its centre and of half its size by them.
template <class T>
struct Decoded {
  Box<T> box;
  Deltas<T> by;
};

template <class T>
LIBRA_FORMULA Decoded<T> decode(const Box<T>& reference, const Box<T>& deltas, const Deltas<T>& stds) {
  const T width = reference.x2 - reference.x1, height = reference.y2 - reference.y1;
  const T x = (reference.x1 + reference.x2) / T(2) + deltas.x1 * stds.x * width;
  const T y = (reference.y1 + reference.y2) / T(2) + deltas.y1 * stds.y * height;
  const T log_w = deltas.x2 * stds.w, log_h = deltas.y2 * stds.h;
  const T near_w = clip_log_scale(log_w), near_h = clip_log_scale(log_h);
  const T half_width = width * scale_of(near_w) / T(2), half_height = height * scale_of(near_h) / T(2);
  return {{x - half_width, y - half_height, x + half_width, y + half_height},
          {stds.x * width, stds.y * height, near_w == log_w ? stds.w * half_width : T(0),
           near_h == log_h ? stds.h * half_height : T(0)}};
}

// The derivative by the deltas from that by the decoded box.
template <class T>
LIBRA_FORMULA Box<T> slope_of_deltas(const Box<T>& slope, const Deltas<T>& by) {
  return {(slope.x1 + slope.x2) * by.x, (slope.y1 + slope.y2) * by.y, (slope.x2 - slope.x1) * by.w,
          (slope.y2 - slope.y1) * by.h};
}

}  // namespace libra
