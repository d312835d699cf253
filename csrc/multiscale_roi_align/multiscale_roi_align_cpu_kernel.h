// multiscale_roi_align and its backward on the CPU, for whoever has pointers.
#pragma once

#include <cstdint>

#include "common/float16.h"
#include "common/parallel.h"
#include "multiscale_roi_align/multiscale_roi_align_math.h"

namespace libra {

// boxes [batch, slots, 4]; valid [batch, slots] or null -> pooled [batch, slots, channels, P, P]: every element is
// written. S: float, double, Half or BFloat16.
template <class S>
void multiscale_roi_align(const RoiMaps<const S>& maps, const typename RoiNumber<S>::type* boxes, const uint8_t* valid,
                          S* pooled, int64_t batch, int64_t slots, int64_t channels, const RoiRules& rules,
                          ParallelFor threads);

// gradient: d loss / d pooled; grads: of the maps, every element is written; null data where one is not wanted.
template <class S>
void multiscale_roi_align_backward(const S* gradient, const typename RoiNumber<S>::type* boxes, const uint8_t* valid,
                                   const RoiMaps<S>& grads, int64_t batch, int64_t slots, int64_t channels,
                                   const RoiRules& rules, ParallelFor threads);

}  // namespace libra
