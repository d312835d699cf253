// Boxes as a network predicts them (Girshick et al. 2014, appendix C): (dx, dy) is the shift of the centre in widths
// and heights of a reference box, (dw, dh) the logarithm of the change of the sides, each divided by its deviation.
//
// Exponential (common/log_scale.h) and logarithm of float32 are ours: without a branch or a table, so that a CPU's
// compiler makes vector code of them, and, built without contraction to fused multiply-adds, the same bits on the CPU
// and on the GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/log_scale.h"

namespace libra {

template <class T>
struct Four {  // of a box: x1, y1, x2, y2; of deltas: dx, dy, dw, dh
  T a, b, c, d;
};

template <class T>
constexpr T kSmallestSide = T(1e-6);  // px; only padded slots are smaller, and their logarithm must stay finite

LIBRA_HOST_DEVICE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

LIBRA_HOST_DEVICE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// ln(x) for x >= 0, infinity included, or NaN: x = 2^n (1 + f), and ln(1 + f) as f - f^2 / 2 + f^3 p(f).
LIBRA_HOST_DEVICE float logarithm(float x) {
  const bool tiny = x < 1.17549435e-38f;  // subnormal: its exponent stands in its fraction
  const float normal = tiny ? x * 8388608.0f : x;
  const uint32_t bits = bits_of(normal);
  const int32_t exponent = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
  const float f = float_of(bits - (static_cast<uint32_t>(exponent) << 23)) - 1.0f, square = f * f;
  float p = 6.748349325e-2f;
  p = p * f - 1.167788743e-1f;
  p = p * f + 1.188863272e-1f;
  p = p * f - 1.240527682e-1f;
  p = p * f + 1.421945256e-1f;
  p = p * f - 1.666800857e-1f;
  p = p * f + 2.000212364e-1f;
  p = p * f - 2.500000946e-1f;
  p = p * f + 3.333331254e-1f;
  const float n = static_cast<float>(exponent - (tiny ? 23 : 0));
  const float rest = f * square * p - n * 2.12194440e-4f - 0.5f * square;
  const float value = f + rest + n * 0.693359375f;
  return x > 0.0f ? (x <= 3.40282347e38f ? value : x) : (x == 0.0f ? -INFINITY : NAN);
}

LIBRA_HOST_DEVICE double logarithm(double x) { return log(x); }

// A NaN stays one.
template <class T>
LIBRA_HOST_DEVICE T at_least(T value, T low) {
  return value < low ? low : value;
}
template <class T>
LIBRA_HOST_DEVICE T at_most(T value, T high) {
  return value > high ? high : value;
}

template <class T>
LIBRA_HOST_DEVICE Four<T> encode_box(const Four<T>& reference, const Four<T>& target, const Four<T>& stds) {
  const T width = at_least(reference.c - reference.a, kSmallestSide<T>);
  const T height = at_least(reference.d - reference.b, kSmallestSide<T>);
  const T target_width = at_least(target.c - target.a, kSmallestSide<T>);
  const T target_height = at_least(target.d - target.b, kSmallestSide<T>);
  const T x = ((target.a + target.c) - (reference.a + reference.c)) / 2 / width;
  const T y = ((target.b + target.d) - (reference.b + reference.d)) / 2 / height;
  return {x / stds.a, y / stds.b, logarithm(target_width / width) / stds.c, logarithm(target_height / height) / stds.d};
}

// The centre and half the sides; the box is their difference and sum.
template <class T>
LIBRA_HOST_DEVICE Four<T> decode_centre(const Four<T>& reference, const Four<T>& deltas, const Four<T>& stds) {
  const T width = reference.c - reference.a, height = reference.d - reference.b;
  const T x = (reference.a + reference.c) / 2 + deltas.a * stds.a * width;
  const T y = (reference.b + reference.d) / 2 + deltas.b * stds.b * height;
  const T log_width = clip_log_scale(deltas.c * stds.c), log_height = clip_log_scale(deltas.d * stds.d);
  return {x, y, width * scale_of(log_width) / 2, height * scale_of(log_height) / 2};
}

// An image's size; boxes that are not clipped have one that is infinite on both sides.
template <class T>
struct Limits {
  T low, width, height;
};

template <class T>
LIBRA_HOST_DEVICE Limits<T> no_limits() {
  return {-static_cast<T>(INFINITY), static_cast<T>(INFINITY), static_cast<T>(INFINITY)};
}

template <class T>
LIBRA_HOST_DEVICE Four<T> decode_box(const Four<T>& reference, const Four<T>& deltas, const Four<T>& stds,
                                     const Limits<T>& limits) {
  const Four<T> centre = decode_centre(reference, deltas, stds);
  return {at_most(at_least(centre.a - centre.c, limits.low), limits.width),
          at_most(at_least(centre.b - centre.d, limits.low), limits.height),
          at_most(at_least(centre.a + centre.c, limits.low), limits.width),
          at_most(at_least(centre.b + centre.d, limits.low), limits.height)};
}

// The gradient with respect to the deltas, from that of the box. It does not pass a coordinate that was clipped to the
// image, nor a side that was clipped to kMaxLogScale.
template <class T>
LIBRA_HOST_DEVICE Four<T> decode_box_backward(const Four<T>& gradient, const Four<T>& reference, const Four<T>& deltas,
                                              const Four<T>& stds, const Limits<T>& limits) {
  const Four<T> centre = decode_centre(reference, deltas, stds);
  const auto passes = [&](T coordinate, T limit) { return coordinate >= limits.low && coordinate <= limit; };
  const T x1 = passes(centre.a - centre.c, limits.width) ? gradient.a : T(0);
  const T y1 = passes(centre.b - centre.d, limits.height) ? gradient.b : T(0);
  const T x2 = passes(centre.a + centre.c, limits.width) ? gradient.c : T(0);
  const T y2 = passes(centre.b + centre.d, limits.height) ? gradient.d : T(0);
  const bool moves_width = deltas.c * stds.c >= -kMaxLogScale<T> && deltas.c * stds.c <= kMaxLogScale<T>;
  const bool moves_height = deltas.d * stds.d >= -kMaxLogScale<T> && deltas.d * stds.d <= kMaxLogScale<T>;
  return {(x1 + x2) * stds.a * (reference.c - reference.a), (y1 + y2) * stds.b * (reference.d - reference.b),
          moves_width ? (x2 - x1) * centre.c * stds.c : T(0), moves_height ? (y2 - y1) * centre.d * stds.d : T(0)};
}

}  // namespace libra
