// Balanced L1 of one coordinate (Libra R-CNN, eq. 6-8): its value and its derivative.
//
// The gradient is alpha ln(b|x|/beta + 1) up to beta and gamma beyond, with b chosen so that the two meet:
// alpha ln(b + 1) = gamma. "published" is mmdetection's formula, in which beta divides inside the logarithm only; at
// beta = 1 the two are the same.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/cuda_compat.cuh"

namespace libra {

enum class Reduction : int64_t { kNone = 0, kSum = 1, kMean = 2 };

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

// ln(1 + x) for x >= 0. On the GPU the library's; on the CPU one that compilers turn into vector code: u = 1 + x is
// split into 2^k m with m in [sqrt(1/2), sqrt(2)), and ln m is a polynomial in f = m - 1 whose error is below 1 ulp.
// The last factor takes back what rounding 1 + x lost.
LIBRA_HOST_DEVICE float log1p_nonnegative(float x) {
#ifdef __CUDA_ARCH__
  return log1pf(x);
#else
  const float u = 1.0f + x;
  uint32_t bits;
  std::memcpy(&bits, &u, sizeof bits);
  const int32_t exponent = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
  bits -= static_cast<uint32_t>(exponent) << 23;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  f -= 1.0f;
  // ln(1 + f) = f - f^2/2 + f^3 p(f) on [sqrt(1/2) - 1, sqrt(2) - 1]; coefficients: Cephes logf (S. Moshier).
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float square = f * f, k = static_cast<float>(exponent);
  float logarithm = f * square * p;
  logarithm += -2.12194440e-4f * k - 0.5f * square;
  logarithm += f;
  logarithm += 0.693359375f * k;
  const float rounded = u - 1.0f;
  return rounded == 0.0f ? x : logarithm * (x / rounded);
#endif
}

LIBRA_HOST_DEVICE double log1p_nonnegative(double x) { return log1p(x); }

// ((1 + u) ln(1 + u) - u) / u for small u >= 0, as a series: the formula itself cancels there.
template <class T>
LIBRA_HOST_DEVICE T small_excess(T u) {
  T series = T(1.0 / 56);
  series = series * u - T(1.0 / 42);
  series = series * u + T(1.0 / 30);
  series = series * u - T(1.0 / 20);
  series = series * u + T(1.0 / 12);
  series = series * u - T(1.0 / 6);
  series = series * u + T(1.0 / 2);
  return series * u;
}

// `error` is pred - target. A masked element (weight 0) is not passed here: it counts nothing, whatever it holds.
template <bool kPublished, class T>
LIBRA_HOST_DEVICE void balanced_l1(T error, const BalancedL1<T>& c, T& loss, T& gradient) {
  const T x = error < T(0) ? -error : error;
  const bool inside = x < c.beta;
  const T inner = inside ? x : (x == x ? c.beta : x);               // a NaN stays one
  constexpr T kSmall = sizeof(T) == 4 ? T(1.0 / 8) : T(1.0 / 256);  // what the series leaves out is below rounding
  const T scaled = c.scale * inner, logarithm = log1p_nonnegative(scaled);
  T slope = c.alpha * logarithm, small = c.alpha * inner;
  if constexpr (kPublished) {
    slope += c.alpha * ((inner + c.shift) * c.scale / (T(1) + scaled) - T(1));
    small = small * c.inverse_beta * (small_excess(scaled) + c.step * (T(1) - logarithm));
  } else {
    small *= small_excess(scaled);
  }
  const T curve = scaled < kSmall ? small : c.alpha * ((inner + c.shift) * logarithm - inner);
  const bool outside = x >= c.beta;
  loss = outside ? c.gamma * x + c.offset : curve;
  slope = outside ? c.gamma : slope;
  gradient = error < T(0) ? -slope : (error == T(0) ? T(0) : slope);
}

}  // namespace libra
