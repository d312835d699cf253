// Box coding on the CPU, for whoever has pointers.
#pragma once

#include "box_coding/box_coding_shape.h"
#include "common/parallel.h"

namespace libra {

// All three: false where an index is out of range; its slot is NaN.
template <class T>
bool encode_boxes(const EncodeTensors<T>& tensors, ParallelFor threads);
template <class T>
bool decode_boxes(const DecodeTensors<T>& tensors, ParallelFor threads);
template <class T>
void decode_boxes_backward(const Four<T>* gradient, const DecodeTensors<T>& tensors, ParallelFor threads);

}  // namespace libra
