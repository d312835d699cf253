// The sigmoid focal loss of one logit (Lin et al. 2017, eq. 5) and its derivative.
//
// Written in z, the logit of the wrong answer: x where the answer is no, -x where it is yes. With q = sigmoid(z) the
// probability of the wrong answer, p = 1 - q and softplus(z) = ln(1 + e^z) = -ln p,
//     loss = w q^gamma softplus(z)        its slope = w q^gamma (q + gamma p softplus(z)).
// All of it comes from e^-|z|, which is in [0, 1], so nothing overflows or cancels.
#pragma once

#include <cmath>

#include "common/arithmetic.h"
#include "common/exponential.h"

namespace libra {

template <class T>
struct Focal {
  T own, other;  // weights: of the slot's own class, alpha, and of the others, 1 - alpha
  T gamma;
  bool square;  // gamma is 2: the kSquare to call focal() with

  static Focal make(double alpha, double gamma) { return {T(alpha), T(1 - alpha), T(gamma), gamma == 2}; }
};

// The gradient of float16 is kept this many times larger until it has met the factor of the backward pass, or what is
// below 6e-8 would be lost. Its size is below 1 + ln(gamma + 1) / 2, so it does not overflow.
constexpr double kHalfGradientScale = 1024;

template <class T>
constexpr T kFarLogit = sizeof(T) == 4 ? T(kLargestExponent) : T(700);  // e^-|z| beyond it is taken as if it were this

// ln(1 + e) for e in [0, 1]: e p(e) with the polynomial p of the least relative error, 3e-8. To 2e-7 of itself.
LIBRA_FORMULA float log_of_one_plus(float e) {
  const float square = e * e;
  const float first = multiply_add(e, -0.4999949314f, 0.9999999699f);
  const float second = multiply_add(e, -0.2484298226f, 0.3331909681f);
  const float third = multiply_add(e, -0.1366324611f, 0.1910600692f);
  const float fourth = multiply_add(e, -0.02950524084f, 0.07822595542f);
  const float low = multiply_add(square, second, first);
  const float high = multiply_add(square, multiply_add(square, 5.23269475e-3f, fourth), third);
  return e * multiply_add(square * square, high, low);
}
LIBRA_FORMULA double log_of_one_plus(double e) { return std::log1p(e); }

// 1 / value for a value in [1, 2].
LIBRA_FORMULA float inverse_of_1_to_2(float value) {
#ifdef __CUDA_ARCH__
  const float estimate = approximate_reciprocal(value);
  return multiply_add(estimate, multiply_add(-value, estimate, 1.0f), estimate);
#else
  return 1.0f / value;
#endif
}
LIBRA_FORMULA double inverse_of_1_to_2(double value) { return 1.0 / value; }

// |z|, but not beyond what exponential() takes; a NaN stays one.
template <class T>
LIBRA_FORMULA T near_size(T z) {
  const T size = z < T(0) ? -z : z;
  return size > kFarLogit<T> ? kFarLogit<T> : size;
}

// `e`: exponential() of -near_size(z). `slope` is the loss's derivative by z.
template <bool kSquare, class T>
LIBRA_FORMULA void focal(T z, T e, T weight, T gamma, T& loss, T& slope) {
  const bool wrong = z > T(0);
  const T size = near_size(z), logarithm = log_of_one_plus(e), larger = inverse_of_1_to_2(T(1) + e);
  const T smaller = e * larger;
  const T q = wrong ? larger : smaller, p = wrong ? smaller : larger;
  T focus = q * q;
  if constexpr (!kSquare) {
    const T exponent = gamma * ((wrong ? T(0) : size) + logarithm);  // -ln(q^gamma)
    focus = exponential<FusedOnGpu>(-(exponent > kFarLogit<T> ? kFarLogit<T> : exponent));
  }
  const T factor = weight * focus;
  slope = factor * (q + gamma * p * ((wrong ? size : T(0)) + logarithm));
  loss = factor * ((wrong ? z : T(0)) + logarithm);
}

template <bool kSquare, class T>
LIBRA_FORMULA void focal(T z, T weight, T gamma, T& loss, T& slope) {
  focal<kSquare>(z, exponential<FusedOnGpu>(-near_size(z)), weight, gamma, loss, slope);
}

}  // namespace libra
