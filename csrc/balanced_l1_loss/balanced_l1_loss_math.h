// Balanced L1 of one coordinate (Libra R-CNN, eq. 6-8): its value and its derivative.
//
// The gradient is alpha ln(b|x|/beta + 1) up to beta and gamma beyond, with b chosen so that the two meet:
// alpha ln(b + 1) = gamma. "published" is mmdetection's formula, in which beta divides inside the logarithm only; at
// beta = 1 the two are the same.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/arithmetic.h"
#include "common/reduction.h"

namespace libra {

template <class T>
struct BalancedL1 {
  T alpha, gamma, beta;
  T scale;               // b / beta: what the error is multiplied by inside the logarithm
  T shift;               // the logarithm's factor is alpha (|x| + shift): beta / b, or 1 / b as published
  T offset;              // beyond beta the loss is gamma |x| + offset
  T inverse_beta, step;  // for small errors as published: 1 / beta, and 1 - beta
  bool published;        // the kPublished to call balanced_l1() with

  static BalancedL1 make(double alpha, double gamma, double beta, bool published) {
    const double b = std::expm1(gamma / alpha);
    const double shift = (published ? 1.0 : beta) / b;
    return {T(alpha),    T(gamma),    T(beta),  T(b / beta), T(shift), T(gamma * shift - alpha * beta),
            T(1 / beta), T(1 - beta), published};
  }
};

// ln(1 + u) for u >= 0, and for u below kSmall the `excess` ((1 + u) ln(1 + u) - u) / u, whose formula cancels there.
template <class T>
struct Logarithm {
  T value, excess;
};

template <class T>
constexpr T kSmall = sizeof(T) == 4 ? T(0.414)       // where split_one_plus() gives exponent 0
                                    : T(1.0 / 256);  // where what the series below leaves out is less than rounding

LIBRA_HOST_DEVICE Logarithm<double> logarithm_of_one_plus(double u) {
  double series = 1.0 / 56;
  series = series * u - 1.0 / 42;
  series = series * u + 1.0 / 30;
  series = series * u - 1.0 / 20;
  series = series * u + 1.0 / 12;
  series = series * u - 1.0 / 6;
  series = series * u + 1.0 / 2;
  return {log1p(u), series * u};
}

// The logarithm of float32, without a branch or a division, so that a CPU's compiler makes vector code of it, and a GPU
// has several under way. Its first step: 1 + u = 2^exponent (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)). f is
// u 2^-exponent + (2^-exponent - 1), rounded once, relative to f: no digit of a small u is lost. u is at most e^80.
struct Split {
  float f, exponent;
};

LIBRA_HOST_DEVICE Split split_one_plus(float u) {
  const float one_plus = 1.0f + u;
  uint32_t bits, scaled_bits;
  std::memcpy(&bits, &one_plus, sizeof bits);
  std::memcpy(&scaled_bits, &u, sizeof scaled_bits);
  const int32_t exponent = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
  const uint32_t shift = static_cast<uint32_t>(exponent) << 23;
  const uint32_t power_bits = 0x3f800000u - shift;
  scaled_bits -= shift;
  float scaled, power;
  std::memcpy(&scaled, &scaled_bits, sizeof scaled);
  std::memcpy(&power, &power_bits, sizeof power);
  return {scaled + (power - 1.0f), static_cast<float>(exponent)};
}

// The second step: ln(1 + f) = f + f^2 (f p(f) - 1/2) with the polynomial p of the least relative error, which is below
// 1e-8; in pairs, which wait less for each other. Where the exponent is 0, f is u, and the excess is a sum of the same
// terms that does not cancel.
LIBRA_HOST_DEVICE Logarithm<float> logarithm_of(const Split& split) {
  const float f = split.f, square = f * f;
  const float low = multiply_add(square, multiply_add(-1.662335545e-1f, f, 2.000122666e-1f),
                                 multiply_add(-2.500082254e-1f, f, 3.333333135e-1f));
  const float high = multiply_add(square, multiply_add(-7.634538412e-2f, f, 1.276164055e-1f),
                                  multiply_add(-1.316019744e-1f, f, 1.420175135e-1f));
  const float p = multiply_add(square * square, high, low), rest = multiply_add(f, p, -0.5f);
  return {multiply_add(0.693147181f, split.exponent, multiply_add(square, rest, f)),
          f * multiply_add(f, p + rest, 0.5f)};
}

LIBRA_HOST_DEVICE Logarithm<float> logarithm_of_one_plus(float u) { return logarithm_of(split_one_plus(u)); }

// One instruction each, in scalar and in vector code.
LIBRA_HOST_DEVICE float absolute(float value) { return fabsf(value); }
LIBRA_HOST_DEVICE double absolute(double value) { return fabs(value); }
LIBRA_HOST_DEVICE float with_sign_of(float value, float other) { return copysignf(value, other); }
LIBRA_HOST_DEVICE double with_sign_of(double value, double other) { return copysign(value, other); }

// The u whose logarithm the formula takes.
template <class T>
LIBRA_HOST_DEVICE T scaled_error(T error, const BalancedL1<T>& c) {
  const T x = absolute(error);
  return c.scale * (x < c.beta ? x : c.beta);
}

// Loss and gradient of an error whose logarithm_of_one_plus(scaled_error()) is known.
template <bool kPublished, class T>
LIBRA_HOST_DEVICE void balanced_l1(T error, const Logarithm<T>& logarithm, const BalancedL1<T>& c, T& loss,
                                   T& gradient) {
  const T x = absolute(error);
  const bool inside = x < c.beta;
  const T inner = inside ? x : c.beta, scaled = c.scale * inner;
  T slope = c.alpha * logarithm.value, small = inner * logarithm.excess, steepest = c.gamma;
  if constexpr (kPublished) {
    slope += c.alpha * ((inner + c.shift) * c.scale / (T(1) + scaled) - T(1));
    small = inner * c.inverse_beta * (logarithm.excess + c.step * (T(1) - logarithm.value));
    steepest += c.alpha * c.inverse_beta;
  }
  const T curve = c.alpha * (scaled < kSmall<T> ? small : (inner + c.shift) * logarithm.value - inner);
  const T line = c.gamma * x;
  loss = inside ? curve : line + c.offset;
  slope = inside ? slope : c.gamma;
  const T above = line + steepest;  // no slope is beyond it, but for a NaN it is one: then so is the minimum
  slope = slope < above ? slope : above;
  if constexpr (kPublished) {  // whose slope is not 0 at 0, and negative beside it where beta is above 1
    slope = x == T(0) ? T(0) : slope;
    gradient = slope * with_sign_of(T(1), error);
  } else {
    gradient = with_sign_of(slope, error);
  }
}

// `error` is pred - target. A masked element (weight 0) is not passed here: it counts nothing, whatever it holds.
template <bool kPublished, class T>
LIBRA_HOST_DEVICE void balanced_l1(T error, const BalancedL1<T>& c, T& loss, T& gradient) {
  balanced_l1<kPublished>(error, logarithm_of_one_plus(scaled_error(error, c)), c, loss, gradient);
}

}  // namespace libra
