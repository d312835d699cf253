// e^x without a branch or a division, so that a CPU's compiler makes vector code of it, and a GPU has several under
// way.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/arithmetic.h"

namespace libra {

constexpr float kLargestExponent = 87.0f;  // e^-87 is the last whole power of e that is a normal float32

// For |x| <= kLargestExponent; a NaN gives NaN. x = n ln 2 + f with |f| <= ln 2 / 2, and e^f is 1 + f p(f) with the
// polynomial p of the least error, 2e-9. To 1.5e-7 of itself.
LIBRA_FORMULA float exponential(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: added to a number of up to 2^22, it leaves a whole one
  const float shifted = multiply_add(x, 1.442695041f, kRound), whole = shifted - kRound;
  const float f = multiply_add(whole, 2.12194440e-4f, multiply_add(whole, -0.693359375f, x));  // ln 2 in two parts
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;  // the lowest bits of `shifted` are n
  float power;
  std::memcpy(&power, &bits, sizeof power);
  const float square = f * f;
  const float low = multiply_add(f, 0.4999999421f, 1.000000032f);
  const float middle = multiply_add(f, 4.166800203e-2f, 1.666643126e-1f);
  const float high = multiply_add(f, 1.38436538e-3f, 8.374155308e-3f);
  const float p = multiply_add(square, multiply_add(square, high, middle), low);
  return multiply_add(f, p, 1.0f) * power;
}

LIBRA_FORMULA double exponential(double x) { return std::exp(x); }

}  // namespace libra
