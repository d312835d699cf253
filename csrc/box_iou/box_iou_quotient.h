// a / b in six instructions that do not branch, rounded as the division operator rounds it.
//
// A GPU has no instruction for a division. In its place the compiler puts an estimate of 1 / b, five fused
// multiply-adds, a check of the range and a call for what lies outside, and the last two keep it from working on
// several pairs at a time. Here the range is known, that of boxes which are plain, so the check is left out and the
// rest is the same.
//
// Why the rest is exact. The estimate is within 1 ulp of 1 / b, so `reciprocal` is within half an ulp and 2^-20 more,
// `first` within 1.5 ulp of a / b, and what is rounded last differs from a / b by at most 1.5 ulp times
// |b reciprocal - 1|: for b in [1, 2), by less than 4 2^-24 / b ulp. So a quotient can only be wrong if a / b is that
// near the middle between two floats. All that are (the difference from a middle, times 2 b, is a whole number of 2^-23
// ulp, so they can be counted out) were tried with the estimate and its two neighbours: two quotients need the right
// one of the three, 1 / (2 - 2^-23) and one more, for which the compiler's division needs it as well. The test is in
// tests/emulation/test_box_iou.py. No remainder may underflow: |a| >= 2^-102 or a = 0, and a normal quotient.
#pragma once

#include "box_iou/box_iou_math.h"

namespace libra {

LIBRA_FORMULA float fused_multiply_add(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

// Within 1 ulp of 1 / b; b normal, below 2^126.
LIBRA_FORMULA float reciprocal_estimate(float b) {
#ifdef __CUDA_ARCH__
  float estimate;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(estimate) : "f"(b));
  return estimate;
#else
  return 1.0f / b;
#endif
}

// 1 / b within half an ulp and 2^-20 more.
LIBRA_FORMULA float reciprocal_of(float b, float estimate) {
  return fused_multiply_add(estimate, fused_multiply_add(-b, estimate, 1.0f), estimate);
}

LIBRA_FORMULA float quotient_of(float a, float b, float estimate) {
  const float reciprocal = reciprocal_of(b, estimate), first = a * reciprocal;
  return fused_multiply_add(fused_multiply_add(-b, first, a), reciprocal, first);
}

// How overlap() divides for boxes that are all plain.
struct PlainDivision {
  LIBRA_FORMULA static float divide(float a, float b) { return quotient_of(a, b, reciprocal_estimate(b)); }
  LIBRA_FORMULA static double divide(double a, double b) { return a / b; }
  LIBRA_FORMULA static float inverse(float value) { return reciprocal_of(value, reciprocal_estimate(value)); }
  LIBRA_FORMULA static double inverse(double value) { return 1.0 / value; }
};

// Coordinates that are 0 or between 2^-16 and 2^20 px. Then a length is 0 or between 2^-39 and 2^21, an area 0 or
// between 2^-78 and 2^42, a divisor between 1e-6 and 2^43, and every numerator of overlap() (CIoU's last one, which it
// divides without this, apart) is 0 or at least 2^-102: a difference of areas, as GIoU's, is at least 2^-24 of the
// larger.
LIBRA_FORMULA bool is_plain(float value) {
  const float size = value < 0.0f ? -value : value;
  return size == 0.0f || (size >= 0x1p-16f && size <= 0x1p20f);
}
LIBRA_FORMULA bool is_plain(double value) { return !is_huge(value); }
template <class T>
LIBRA_FORMULA bool is_plain(const Box<T>& box) {
  return is_plain(box.x1) && is_plain(box.y1) && is_plain(box.x2) && is_plain(box.y2);
}

}  // namespace libra
