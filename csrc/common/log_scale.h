// The change of a side that a delta (dw, dh) asks for: box_coding and box_regression_loss decode the same boxes.
#pragma once

#include "common/exponential.h"

namespace libra {

template <class T>
constexpr T kMaxLogScale = T(4.135166556742356);  // ln(1000 / 16): a side grows at most by that factor

// A NaN stays one.
template <class T>
LIBRA_FORMULA T clip_log_scale(T value) {
  return value < -kMaxLogScale<T> ? -kMaxLogScale<T> : (value > kMaxLogScale<T> ? kMaxLogScale<T> : value);
}

// The factor of a side, from what clip_log_scale() gave.
template <class T>
LIBRA_FORMULA T scale_of(T log_scale) {
  return exponential<SameBits>(log_scale);
}

}  // namespace libra
