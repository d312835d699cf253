// e^x without a branch or a division, so that a CPU's compiler makes vector code of it, and a GPU has several under
// way.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/arithmetic.h"

namespace libra {

constexpr float kLargestExponent = 87.0f;  // e^-87 is the last whole power of e that is a normal float32

// For |x| <= kLargestExponent; a NaN gives NaN. x = n ln 2 + r with |r| <= ln 2 / 2, and e^r is 1 + r + r^2 p(r) with
// the polynomial p of the least relative error. To 1.1 units of the last place. Arithmetic: FusedOnGpu or SameBits.
template <class Arithmetic>
LIBRA_FORMULA float exponential(float x) {
  using A = Arithmetic;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: added to a number of up to 2^22, it leaves a whole one
  const float shifted = A::multiply_add(x, 1.44269504f, kRound), n = shifted - kRound;
  // ln 2 in two parts; the first product is exact.
  const float r = A::multiply_add(n, 2.12194440e-4f, A::multiply_add(n, -0.693359375f, x));
  float p = A::multiply_add(1.978927348e-4f, r, 1.394573964e-3f);
  p = A::multiply_add(p, r, 8.333503679e-3f);
  p = A::multiply_add(p, r, 4.166628050e-2f);
  p = A::multiply_add(p, r, 1.666666582e-1f);
  p = A::multiply_add(p, r, 5.000000072e-1f);
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;  // the lowest bits of `shifted` are n
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return (A::multiply_add(p, r * r, r) + 1.0f) * power;
}

template <class Arithmetic>
LIBRA_FORMULA double exponential(double x) {
  return std::exp(x);
}

}  // namespace libra
