// sigmoid_focal_loss on the CPU, for whoever has pointers.
#pragma once

#include "common/float16.h"
#include "common/parallel.h"
#include "common/reduction.h"
#include "sigmoid_focal_loss/sigmoid_focal_loss_math.h"

namespace libra {

// S: float, double, Half or BFloat16. The gradient is that of the reduced loss, or null; that of Half is of the summed
// loss and kHalfGradientScale times larger.
template <class S>
struct FocalTensors {
  const S* logits;        // [rows, classes]
  const int64_t* labels;  // [rows]; one outside of [0, classes) is that of the background
  const uint8_t* mask;    // [rows], or null: all count
  Arithmetic<S>* loss;    // [rows, classes] for Reduction::kNone, else one element
  S* gradient;            // [rows, classes], or null
  int64_t rows, classes;
};

template <class S>
void sigmoid_focal_loss(const FocalTensors<S>& tensors, const Focal<Arithmetic<S>>& constants, Reduction reduction,
                        ParallelFor threads);

}  // namespace libra
