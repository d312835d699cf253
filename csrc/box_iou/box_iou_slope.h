// The derivative of box_iou_math.h's overlap() by the four coordinates of one of its boxes.
//
// The chain rule backwards: first the derivative of the result by what it is made of (the intersection, the area of the
// own box, the hull, the centre, the angle), then by the coordinates. It flows through everything, CIoU's alpha
// included.
//
// At a kink the derivative is PyTorch's: half to each of two equal numbers in a minimum or maximum, and that of the
// value where a value equals the bound it is clamped to.
#pragma once

#include "box_iou/box_iou_math.h"

namespace libra {

// The derivative of minimum(a, b) by a; of maximum(a, b) by a with the arguments exchanged.
template <class T>
LIBRA_FORMULA T share_of_lesser(T a, T b) {
  return a < b ? T(1) : (a == b ? T(0.5) : T(0));
}
// The derivative of at_least(value, bound) by the value.
template <class T>
LIBRA_FORMULA T share_above(T value, double bound) {
  return value >= static_cast<T>(bound) ? T(1) : T(0);
}

// The box that is differentiated by, with what is the same for all its pairs.
template <class T>
struct Own {
  Side<T> side;
  T area_by_width, area_by_height;    // the width is that before it is clamped at 0, x2 - x1
  T area_counts;                      // 1 where the area is not below its clamp, else 0; for IoF
  T angle_by_width, angle_by_height;  // for CIoU
};

template <Kind kind, class T>
LIBRA_FORMULA Own<T> make_own(const Box<T>& box) {
  const T width = at_least(box.x2 - box.x1, 0.0), height = at_least(box.y2 - box.y1, 0.0);
  const T wide = share_above(box.x2 - box.x1, 0.0), high = share_above(box.y2 - box.y1, 0.0);
  Own<T> own{make_side<kind>(box), wide * height, high * width, T(0), T(0), T(0)};
  if constexpr (kind == Kind::kIof) {
    own.area_counts = share_above(own.side.area, kSmallestArea);
  }
  if constexpr (kind == Kind::kCiou) {
    const T divisor = at_least(height, kSmallestArea), aspect = width / divisor;
    const T by_aspect = T(1) / (T(1) + aspect * aspect);
    own.angle_by_width = wide * by_aspect / divisor;
    own.angle_by_height = -share_above(height, kSmallestArea) * by_aspect * aspect / divisor;
  }
  return own;
}

// The derivative by `own`, which is overlap()'s first box or its second. Neither box is_huge().
template <Kind kind, bool kOwnIsFirst, class T>
LIBRA_FORMULA Box<T> overlap_slope(const Own<T>& own, const Side<T>& other) {
  const Box<T>& a = own.side.box;
  const Box<T>& b = other.box;
  const T width = minimum(a.x2, b.x2) - maximum(a.x1, b.x1), height = minimum(a.y2, b.y2) - maximum(a.y1, b.y1);
  const T overlap_width = at_least(width, 0.0), overlap_height = at_least(height, 0.0);
  const T inter = overlap_width * overlap_height;

  T by_inter = T(0), by_area = T(0), by_angle = T(0);
  T by_hull_width = T(0), by_hull_height = T(0);
  T by_x = T(0), by_y = T(0);  // of x1 and x2, and of y1 and y2, through the centre
  if constexpr (kind == Kind::kIof) {
    const T divisor = at_least(kOwnIsFirst ? own.side.area : other.area, kSmallestArea);
    by_inter = T(1) / divisor;
    if constexpr (kOwnIsFirst) by_area = -own.area_counts * (inter / divisor) * by_inter;
  } else {
    const T joint = own.side.area + other.area - inter;
    const T divisor = at_least(joint, kSmallestArea);
    const T inverse = T(1) / divisor, ratio = inter / divisor;  // a ratio of exactly 1 has a gradient of exactly 0
    T by_ratio = T(1), by_joint = T(0);
    if constexpr (kind != Kind::kIou) {
      const T hull_x = maximum(a.x2, b.x2) - minimum(a.x1, b.x1), hull_y = maximum(a.y2, b.y2) - minimum(a.y1, b.y1);
      const T hull_width = at_least(hull_x, 0.0), hull_height = at_least(hull_y, 0.0);
      if constexpr (kind == Kind::kGiou) {
        const T hull = hull_width * hull_height, inverse_hull = T(1) / at_least(hull, kSmallestArea);
        by_joint = inverse_hull;
        const T by_hull = (share_above(hull, kSmallestArea) * (hull - joint) * inverse_hull - T(1)) * inverse_hull;
        by_hull_width = by_hull * hull_height;
        by_hull_height = by_hull * hull_width;
      } else {
        const T dx = (a.x1 + a.x2 - b.x1 - b.x2) * T(0.5), dy = (a.y1 + a.y2 - b.y1 - b.y2) * T(0.5);
        const T diagonal = hull_width * hull_width + hull_height * hull_height;
        const T inverse_diagonal = T(1) / at_least(diagonal, kSmallestArea);
        const T by_diagonal =
            share_above(diagonal, kSmallestArea) * (dx * dx + dy * dy) * inverse_diagonal * inverse_diagonal;
        by_x = -dx * inverse_diagonal;
        by_y = -dy * inverse_diagonal;
        by_hull_width = T(2) * hull_width * by_diagonal;
        by_hull_height = T(2) * hull_height * by_diagonal;
        if constexpr (kind == Kind::kCiou) {
          const T turn = own.side.angle - other.angle;
          const T v = turn * turn * T(kCiouScale), rest = T(1) - ratio + v;
          const T alpha = v / at_least(rest, kSmallestArea), by_rest = alpha * alpha * share_above(rest, kSmallestArea);
          by_ratio -= by_rest;
          by_angle = (by_rest - T(2) * alpha) * T(2 * kCiouScale) * turn;
        }
      }
      by_hull_width *= share_above(hull_x, 0.0);
      by_hull_height *= share_above(hull_y, 0.0);
    }
    by_joint -= share_above(joint, kSmallestArea) * by_ratio * ratio * inverse;
    by_area = by_joint;
    by_inter = by_ratio * inverse - by_joint;
  }

  const T by_width = by_inter * overlap_height * share_above(width, 0.0);
  const T by_height = by_inter * overlap_width * share_above(height, 0.0);
  const T by_own_width = by_area * own.area_by_width + by_angle * own.angle_by_width;
  const T by_own_height = by_area * own.area_by_height + by_angle * own.angle_by_height;
  return {
      by_x - by_width * share_of_lesser(b.x1, a.x1) - by_hull_width * share_of_lesser(a.x1, b.x1) - by_own_width,
      by_y - by_height * share_of_lesser(b.y1, a.y1) - by_hull_height * share_of_lesser(a.y1, b.y1) - by_own_height,
      by_x + by_width * share_of_lesser(a.x2, b.x2) + by_hull_width * share_of_lesser(b.x2, a.x2) + by_own_width,
      by_y + by_height * share_of_lesser(a.y2, b.y2) + by_hull_height * share_of_lesser(b.y2, a.y2) + by_own_height};
}

// overlap_slope() of a pair with a box that is_huge().
template <Kind kind, bool kOwnIsFirst, class T>
LIBRA_HOST_DEVICE Box<T> overlap_slope_huge(const Box<T>& own, const Box<T>& other) {
  const T nan = static_cast<T>(NAN);
  if (has_nan(own) || has_nan(other)) return {nan, nan, nan, nan};
  const Box<double> slope =
      overlap_slope<kind, kOwnIsFirst>(make_own<kind>(to_double(own)), make_side<kind>(to_double(other)));
  return {static_cast<T>(slope.x1), static_cast<T>(slope.y1), static_cast<T>(slope.x2), static_cast<T>(slope.y2)};
}

}  // namespace libra
