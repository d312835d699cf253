// box_regression_loss on the CPU, for whoever has pointers.
#pragma once

#include "box_regression_loss/box_regression_loss_math.h"
#include "common/parallel.h"
#include "common/reduction.h"

namespace libra {

template <class T>
struct BoxLossTensors {  // of n pairs
  const Box<T>* pred;    // [n]; deltas, if there are references
  const Box<T>* target;
  const T* weight;           // [n], or null: 1
  const Box<T>* references;  // [reference_count], of which pair i has i modulo their number; or null
  int64_t reference_count;
  const T* stds;            // [4], or null: 1
  T* loss;                  // [n] for Reduction::kNone, else one element
  Box<T>* gradient;         // of the reduced loss with respect to pred, or null
  Box<T>* target_gradient;  // or null
  int64_t n;
};

// T: float or double.
template <class T>
void box_regression_loss(Kind kind, const BoxLossTensors<T>& tensors, Reduction reduction, ParallelFor threads);

}  // namespace libra
