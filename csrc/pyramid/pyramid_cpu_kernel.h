// integrate_pyramid, scatter_pyramid and their backward passes on the CPU, for whoever has pointers: one version for
// maps whose channels are neighbours in memory, one for maps whose columns are (their stride is 1).
//
// index: where each window's largest value lies, counted along the window's rows; null if it is not wanted. Of
// integrate for the levels finer than the refine level, [levels, B, C, H, W] of the refine level's size; of scatter for
// the coarser ones, one [B, C, H_l, W_l] behind the other; each in the order of the format.
// T: float, double, Half or BFloat16 (computed in float). I: int32_t, or uint8_t where no window has more than 256
// cells.
#pragma once

#include "common/float16.h"
#include "common/parallel.h"
#include "pyramid/pyramid_math.h"

namespace libra {

template <class T, class I>
struct ChannelsLast {
  // mean [B, C, H, W]: every element is written.
  static void integrate(const Pyramid<const T>& levels, const PyramidSizes& sizes, const Map<T>& mean, I* index,
                        ParallelFor threads);
  // gradient: d loss / d mean; levels: d loss / d level, every element is written.
  static void integrate_backward(const Map<const T>& gradient, const PyramidSizes& sizes, const I* index,
                                 const Pyramid<T>& levels, ParallelFor threads);
  // outputs: of the levels' sizes, every element is written.
  static void scatter(const Pyramid<const T>& levels, const Map<const T>& refined, const PyramidSizes& sizes,
                      const Pyramid<T>& outputs, I* index, ParallelFor threads);
  // gradients: d loss / d output; result: d loss / d refined, every element is written.
  static void scatter_backward(const Pyramid<const T>& gradients, const PyramidSizes& sizes, const I* index,
                               const Map<T>& result, ParallelFor threads);
};

// The same four.
template <class T, class I>
struct Planes {
  static void integrate(const Pyramid<const T>& levels, const PyramidSizes& sizes, const Map<T>& mean, I* index,
                        ParallelFor threads);
  static void integrate_backward(const Map<const T>& gradient, const PyramidSizes& sizes, const I* index,
                                 const Pyramid<T>& levels, ParallelFor threads);
  static void scatter(const Pyramid<const T>& levels, const Map<const T>& refined, const PyramidSizes& sizes,
                      const Pyramid<T>& outputs, I* index, ParallelFor threads);
  static void scatter_backward(const Pyramid<const T>& gradients, const PyramidSizes& sizes, const I* index,
                               const Map<T>& result, ParallelFor threads);
};

}  // namespace libra
