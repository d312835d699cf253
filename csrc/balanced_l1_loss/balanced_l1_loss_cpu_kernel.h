// balanced_l1_loss on the CPU, for whoever has pointers.
#pragma once

#include "balanced_l1_loss/balanced_l1_loss_math.h"
#include "common/parallel.h"

namespace libra {

// pred, target, weight [n] (weight may be null: 1); loss [n] for Reduction::kNone, else one element; gradient [n], of
// the reduced loss with respect to pred, or null. T: float or double.
template <class T>
void balanced_l1_loss(const T* pred, const T* target, const T* weight, T* loss, T* gradient, int64_t n,
                      const BalancedL1<T>& constants, Reduction reduction, ParallelFor threads);

}  // namespace libra
