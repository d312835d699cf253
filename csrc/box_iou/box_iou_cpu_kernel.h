// box_iou and its backward on the CPU, for whoever has pointers: the torch and the NumPy side call it.
#pragma once

#include "box_iou/box_iou_math.h"
#include "common/parallel.h"

namespace libra {

// boxes1 [batch, n], boxes2 [batch, m], overlaps [batch, n, m]: every element is written. T: float or double.
template <class T>
void box_iou(Kind kind, const Box<T>* boxes1, const Box<T>* boxes2, T* overlaps, int64_t batch, int64_t n, int64_t m,
             ParallelFor threads);

// gradient [batch, n, m]: d loss / d overlap; grad1 [batch, n], grad2 [batch, m]: every element is written.
template <class T>
void box_iou_backward(Kind kind, const T* gradient, const Box<T>* boxes1, const Box<T>* boxes2, Box<T>* grad1,
                      Box<T>* grad2, int64_t batch, int64_t n, int64_t m, ParallelFor threads);

}  // namespace libra
