// The derivative of box_iou_math.h's overlap() by the four coordinates of one of its boxes.
//
// The chain rule backwards: first the derivative of the result by what it is made of (the intersection, the area of the
// own box, the hull, the centre, the angle), then by the coordinates. It flows through everything, CIoU's alpha
// included.
//
// overlap_slope() is for one box of a pair; add_slopes() adds up those of both, which share most of the work.
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

template <Kind kind, class Angle = LibraryAngle, class T>
LIBRA_FORMULA Own<T> make_own(const Box<T>& box) {
  const T width = at_least(box.x2 - box.x1, 0.0), height = at_least(box.y2 - box.y1, 0.0);
  const T wide = share_above(box.x2 - box.x1, 0.0), high = share_above(box.y2 - box.y1, 0.0);
  Own<T> own{make_side<kind, Angle>(box), wide * height, high * width, T(0), T(0), T(0)};
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

// The derivative of overlap() by what it is made of.
template <class T>
struct SlopeParts {
  T width, height;  // of the intersection, before they are clamped at 0
  T by_inter;
  T by_area;   // the own; the other's is the same, but for IoF, where it counts for nothing
  T by_angle;  // the own; of the other's, the negative
  T by_hull_width, by_hull_height;
  T by_x, by_y;  // of the own x1 and x2, and y1 and y2, through the centre; of the other's, the negative
};

template <Kind kind, bool kOwnIsFirst, class Division, class T>
LIBRA_FORMULA SlopeParts<T> overlap_slope_parts(const Side<T>& own, T own_area_counts, const Side<T>& other) {
  const Box<T>& a = own.box;
  const Box<T>& b = other.box;
  SlopeParts<T> parts{};
  parts.width = minimum(a.x2, b.x2) - maximum(a.x1, b.x1);
  parts.height = minimum(a.y2, b.y2) - maximum(a.y1, b.y1);
  const T inter = at_least(parts.width, 0.0) * at_least(parts.height, 0.0);
  if constexpr (kind == Kind::kIof) {
    const T divisor = at_least(kOwnIsFirst ? own.area : other.area, kSmallestArea);
    parts.by_inter = Division::inverse(divisor);
    if constexpr (kOwnIsFirst) {
      parts.by_area = -own_area_counts * Division::divide(inter, divisor) * parts.by_inter;
    }
  } else {
    const T joint = own.area + other.area - inter;
    const T divisor = at_least(joint, kSmallestArea);
    const T inverse = Division::inverse(divisor);
    const T ratio = Division::divide(inter, divisor);  // a ratio of exactly 1 has a gradient of exactly 0
    T by_ratio = T(1), by_joint = T(0);
    if constexpr (kind != Kind::kIou) {
      const T hull_x = maximum(a.x2, b.x2) - minimum(a.x1, b.x1), hull_y = maximum(a.y2, b.y2) - minimum(a.y1, b.y1);
      const T hull_width = at_least(hull_x, 0.0), hull_height = at_least(hull_y, 0.0);
      if constexpr (kind == Kind::kGiou) {
        const T hull = hull_width * hull_height, inverse_hull = Division::inverse(at_least(hull, kSmallestArea));
        by_joint = inverse_hull;
        const T by_hull = (share_above(hull, kSmallestArea) * (hull - joint) * inverse_hull - T(1)) * inverse_hull;
        parts.by_hull_width = by_hull * hull_height;
        parts.by_hull_height = by_hull * hull_width;
      } else {
        const T dx = (a.x1 + a.x2 - b.x1 - b.x2) * T(0.5), dy = (a.y1 + a.y2 - b.y1 - b.y2) * T(0.5);
        const T diagonal = hull_width * hull_width + hull_height * hull_height;
        const T inverse_diagonal = Division::inverse(at_least(diagonal, kSmallestArea));
        const T by_diagonal =
            share_above(diagonal, kSmallestArea) * (dx * dx + dy * dy) * inverse_diagonal * inverse_diagonal;
        parts.by_x = -dx * inverse_diagonal;
        parts.by_y = -dy * inverse_diagonal;
        parts.by_hull_width = T(2) * hull_width * by_diagonal;
        parts.by_hull_height = T(2) * hull_height * by_diagonal;
        if constexpr (kind == Kind::kCiou) {
          const T turn = own.angle - other.angle;
          const T v = turn * turn * T(kCiouScale), rest = T(1) - ratio + v;
          const T alpha = v / at_least(rest, kSmallestArea), by_rest = alpha * alpha * share_above(rest, kSmallestArea);
          by_ratio -= by_rest;
          parts.by_angle = (by_rest - T(2) * alpha) * T(2 * kCiouScale) * turn;
        }
      }
      parts.by_hull_width *= share_above(hull_x, 0.0);
      parts.by_hull_height *= share_above(hull_y, 0.0);
    }
    by_joint -= share_above(joint, kSmallestArea) * by_ratio * ratio * inverse;
    parts.by_area = by_joint;
    parts.by_inter = by_ratio * inverse - by_joint;
  }
  return parts;
}

// The derivative by `own`, which is overlap()'s first box or its second. Neither box is_huge().
template <Kind kind, bool kOwnIsFirst, class T>
LIBRA_FORMULA Box<T> overlap_slope(const Own<T>& own, const Side<T>& other) {
  const Box<T>& a = own.side.box;
  const Box<T>& b = other.box;
  const SlopeParts<T> parts = overlap_slope_parts<kind, kOwnIsFirst, AnyDivision>(own.side, own.area_counts, other);
  const T by_width = parts.by_inter * at_least(parts.height, 0.0) * share_above(parts.width, 0.0);
  const T by_height = parts.by_inter * at_least(parts.width, 0.0) * share_above(parts.height, 0.0);
  const T by_own_width = parts.by_area * own.area_by_width + parts.by_angle * own.angle_by_width;
  const T by_own_height = parts.by_area * own.area_by_height + parts.by_angle * own.angle_by_height;
  return {parts.by_x - by_width * share_of_lesser(b.x1, a.x1) - parts.by_hull_width * share_of_lesser(a.x1, b.x1) -
              by_own_width,
          parts.by_y - by_height * share_of_lesser(b.y1, a.y1) - parts.by_hull_height * share_of_lesser(a.y1, b.y1) -
              by_own_height,
          parts.by_x + by_width * share_of_lesser(a.x2, b.x2) + parts.by_hull_width * share_of_lesser(b.x2, a.x2) +
              by_own_width,
          parts.by_y + by_height * share_of_lesser(a.y2, b.y2) + parts.by_hull_height * share_of_lesser(b.y2, a.y2) +
              by_own_height};
}

// The gradients of many pairs, added up for one of their boxes. What the box's area and angle pass on is multiplied in
// at the end, by total().
template <class T>
struct SlopeSum {
  Box<T> box;
  T by_area, by_angle;
};

template <Kind kind, class T>
LIBRA_FORMULA Box<T> total(const SlopeSum<T>& sum, const Own<T>& own) {
  T by_width = sum.by_area * own.area_by_width, by_height = sum.by_area * own.area_by_height;
  if constexpr (kind == Kind::kCiou) {
    by_width += sum.by_angle * own.angle_by_width;
    by_height += sum.by_angle * own.angle_by_height;
  }
  return {sum.box.x1 - by_width, sum.box.y1 - by_height, sum.box.x2 + by_width, sum.box.y2 + by_height};
}

// One coordinate of both boxes, at its lesser or greater end: `overlap_share` of by_overlap goes to the first box and
// the rest to the second; with the hull, whose end is the other of the two coordinates, it is the reverse.
template <Kind kind, class T>
LIBRA_FORMULA void add_end(T overlap_share, T by_overlap, T by_hull, T by_center, T& first, T& second) {
  const T rest = T(1) - overlap_share;
  T to_first = by_overlap * overlap_share, to_second = by_overlap * rest;
  if constexpr (kind != Kind::kIou && kind != Kind::kIof) {
    to_first += by_hull * rest;
    to_second += by_hull * overlap_share;
  }
  if constexpr (kind == Kind::kDiou || kind == Kind::kCiou) {
    to_first += by_center;
    to_second -= by_center;
  }
  first += to_first;
  second += to_second;
}

// Adds the gradient of a pair to the sums of its first and its second box. Neither box is_huge().
template <Kind kind, class Division, class T>
LIBRA_FORMULA void add_slopes(T incoming, const Side<T>& first, T first_area_counts, const Side<T>& second,
                              SlopeSum<T>& first_sum, SlopeSum<T>& second_sum) {
  const Box<T>& a = first.box;
  const Box<T>& b = second.box;
  const SlopeParts<T> parts = overlap_slope_parts<kind, true, Division>(first, first_area_counts, second);
  const T by_inter = incoming * parts.by_inter;
  const T by_width = by_inter * at_least(parts.height, 0.0) * share_above(parts.width, 0.0);
  const T by_height = by_inter * at_least(parts.width, 0.0) * share_above(parts.height, 0.0);
  const T by_hull_width = incoming * parts.by_hull_width, by_hull_height = incoming * parts.by_hull_height;
  const T by_x = incoming * parts.by_x, by_y = incoming * parts.by_y;
  Box<T>& to_first = first_sum.box;
  Box<T>& to_second = second_sum.box;
  add_end<kind>(share_of_lesser(b.x1, a.x1), -by_width, -by_hull_width, by_x, to_first.x1, to_second.x1);
  add_end<kind>(share_of_lesser(b.y1, a.y1), -by_height, -by_hull_height, by_y, to_first.y1, to_second.y1);
  add_end<kind>(share_of_lesser(a.x2, b.x2), by_width, by_hull_width, by_x, to_first.x2, to_second.x2);
  add_end<kind>(share_of_lesser(a.y2, b.y2), by_height, by_hull_height, by_y, to_first.y2, to_second.y2);
  first_sum.by_area += incoming * parts.by_area;
  if constexpr (kind != Kind::kIof) second_sum.by_area += incoming * parts.by_area;
  if constexpr (kind == Kind::kCiou) {
    first_sum.by_angle += incoming * parts.by_angle;
    second_sum.by_angle -= incoming * parts.by_angle;
  }
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
