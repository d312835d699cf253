// IoU of one pair of boxes, and its relatives: IoF, GIoU (Rezatofighi et al. 2019, eq. 3), DIoU and CIoU (Zheng et al.
// 2020, eq. 7 and 10). box_iou and match_boxes share it, so that their IoU agrees bit for bit.
//
// Boxes are xyxy in continuous pixels. Widths and heights are clamped at 0: an inverted box has no area.
//
// Huge boxes: beyond coordinates of 1e18 a product of lengths may overflow float32, and a NaN is lost in a comparison.
// So the formulas hold for boxes that are not is_huge(); for a pair with one that is, there is overlap_huge(), in
// double.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/arithmetic.h"

namespace libra {

template <class T>
struct Box {
  T x1, y1, x2, y2;
};

enum class Kind : int64_t { kIou = 0, kIof = 1, kGiou = 2, kDiou = 3, kCiou = 4 };

constexpr double kSmallestArea = 1e-6;              // px^2: the least a union is divided by, as published
constexpr double kCiouScale = 0.40528473456935109;  // 4 / pi^2

// Comparisons that compilers turn into vector code; on the GPU the instruction of the same result.
LIBRA_FORMULA double minimum(double a, double b) { return a < b ? a : b; }
LIBRA_FORMULA double maximum(double a, double b) { return a > b ? a : b; }
LIBRA_FORMULA float minimum(float a, float b) {
#ifdef __CUDA_ARCH__
  return fminf(a, b);
#else
  return a < b ? a : b;
#endif
}
LIBRA_FORMULA float maximum(float a, float b) {
#ifdef __CUDA_ARCH__
  return fmaxf(a, b);
#else
  return a > b ? a : b;
#endif
}
LIBRA_FORMULA float at_least(float value, double bound) { return maximum(value, static_cast<float>(bound)); }
LIBRA_FORMULA double at_least(double value, double bound) { return maximum(value, bound); }
LIBRA_FORMULA float arc_tangent(float value) { return std::atan(value); }
LIBRA_FORMULA double arc_tangent(double value) { return std::atan(value); }

template <class T>
LIBRA_FORMULA T area(const Box<T>& box) {
  return at_least(box.x2 - box.x1, 0.0) * at_least(box.y2 - box.y1, 0.0);
}

template <class T>
LIBRA_FORMULA T intersection(const Box<T>& a, const Box<T>& b) {
  const T width = at_least(minimum(a.x2, b.x2) - maximum(a.x1, b.x1), 0.0);
  const T height = at_least(minimum(a.y2, b.y2) - maximum(a.y1, b.y1), 0.0);
  return width * height;
}

// How the formulas divide. box_iou_quotient.h has another way, of the same results, for the GPU.
struct AnyDivision {
  template <class T>
  LIBRA_FORMULA static T divide(T a, T b) {
    return a / b;
  }
  template <class T>
  LIBRA_FORMULA static T inverse(T value) {
    return T(1) / value;
  }
};

// The areas come from area(): a loop over pairs computes them once per box.
template <class Division = AnyDivision, class T>
LIBRA_FORMULA T iou(const Box<T>& a, T area_a, const Box<T>& b, T area_b) {
  const T inter = intersection(a, b);
  return Division::divide(inter, at_least(area_a + area_b - inter, kSmallestArea));
}

// The share of a that b covers.
template <class Division = AnyDivision, class T>
LIBRA_FORMULA T iof(const Box<T>& a, T area_a, const Box<T>& b) {
  return Division::divide(intersection(a, b), at_least(area_a, kSmallestArea));
}

// A box with what the formulas need of it alone: computed once per box.
template <class T>
struct Side {
  Box<T> box;
  T area;
  T angle;  // atan(width / height), for CIoU
};

// The angle of width and height >= 1e-6, by the library's arc tangent.
struct LibraryAngle {
  template <class T>
  LIBRA_FORMULA static T of(T width, T height) {
    return arc_tangent(width / height);
  }
};

template <Kind kind, class Angle = LibraryAngle, class T>
LIBRA_FORMULA Side<T> make_side(const Box<T>& box) {
  Side<T> side{{box.x1, box.y1, box.x2, box.y2}, area(box), T{}};  // one by one: a struct keeps a loop scalar
  if constexpr (kind == Kind::kCiou) {
    side.angle = Angle::of(at_least(box.x2 - box.x1, 0.0), at_least(box.y2 - box.y1, kSmallestArea));
  }
  return side;
}

template <Kind kind, class Division = AnyDivision, class T>
LIBRA_FORMULA T overlap(const Side<T>& first, const Side<T>& second) {
  const Box<T>& a = first.box;
  const Box<T>& b = second.box;
  if constexpr (kind == Kind::kIof) {
    return iof<Division>(a, first.area, b);
  } else if constexpr (kind == Kind::kIou) {
    return iou<Division>(a, first.area, b, second.area);
  } else {
    const T inter = intersection(a, b);
    const T joint = first.area + second.area - inter;
    const T ratio = Division::divide(inter, at_least(joint, kSmallestArea));
    const T hull_width = at_least(maximum(a.x2, b.x2) - minimum(a.x1, b.x1), 0.0);
    const T hull_height = at_least(maximum(a.y2, b.y2) - minimum(a.y1, b.y1), 0.0);
    if constexpr (kind == Kind::kGiou) {
      const T hull = hull_width * hull_height;
      return ratio - Division::divide(hull - joint, at_least(hull, kSmallestArea));
    } else {
      const T dx = (a.x1 + a.x2 - b.x1 - b.x2) * T(0.5);
      const T dy = (a.y1 + a.y2 - b.y1 - b.y2) * T(0.5);
      const T diagonal = hull_width * hull_width + hull_height * hull_height;
      const T diou = ratio - Division::divide(dx * dx + dy * dy, at_least(diagonal, kSmallestArea));
      if constexpr (kind == Kind::kDiou) {
        return diou;
      } else {
        const T turn = first.angle - second.angle;
        const T v = turn * turn * T(kCiouScale);
        return diou - v * v / at_least(T(1) - ratio + v, kSmallestArea);  // the last term is alpha v
      }
    }
  }
}

// A coordinate is beyond 1e18 px, infinite or NaN (float64: not finite; its products overflow only beyond 1e150).
LIBRA_FORMULA bool is_huge(float value) { return !(value >= -1e18f && value <= 1e18f); }
LIBRA_FORMULA bool is_huge(double value) { return !(value - value == 0.0); }
template <class T>
LIBRA_FORMULA bool is_huge(const Box<T>& box) {
  return is_huge(box.x1) || is_huge(box.y1) || is_huge(box.x2) || is_huge(box.y2);
}

template <class T>
LIBRA_FORMULA bool has_nan(const Box<T>& box) {
  return box.x1 != box.x1 || box.y1 != box.y1 || box.x2 != box.x2 || box.y2 != box.y2;
}

template <class T>
LIBRA_FORMULA Box<double> to_double(const Box<T>& box) {
  return {static_cast<double>(box.x1), static_cast<double>(box.y1), static_cast<double>(box.x2),
          static_cast<double>(box.y2)};
}

// overlap() of a pair with a huge box: finite for finite boxes, NaN for a NaN, for an infinite box its limit or NaN.
template <Kind kind, class T>
LIBRA_FORMULA T overlap_huge(const Box<T>& a, const Box<T>& b) {
  if (has_nan(a) || has_nan(b)) return static_cast<T>(NAN);
  const double result = overlap<kind>(make_side<kind>(to_double(a)), make_side<kind>(to_double(b)));
  // An infinite intersection makes the union NaN, which at_least() loses.
  return static_cast<T>(result < static_cast<double>(INFINITY) ? result : static_cast<double>(NAN));
}

// Calls function(std::integral_constant<Kind, ...>): the formula is chosen at compile time.
template <class Function>
auto with_kind(Kind kind, Function&& function) {
  switch (kind) {
    case Kind::kIof:
      return function(std::integral_constant<Kind, Kind::kIof>{});
    case Kind::kGiou:
      return function(std::integral_constant<Kind, Kind::kGiou>{});
    case Kind::kDiou:
      return function(std::integral_constant<Kind, Kind::kDiou>{});
    case Kind::kCiou:
      return function(std::integral_constant<Kind, Kind::kCiou>{});
    default:
      return function(std::integral_constant<Kind, Kind::kIou>{});
  }
}

}  // namespace libra
