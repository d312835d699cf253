// Box coding on the CPU, for whoever has pointers.
#pragma once

#include "box_coding/box_coding_shape.h"
#include "common/parallel.h"

namespace libra {

// Both: false where an index is out of range; its slot is NaN.
template <class T>
bool encode_boxes(const EncodeTensors<T>& tensors, ParallelFor threads);
template <class T>
bool decode_boxes(const DecodeTensors<T>& tensors, ParallelFor threads);
// tensors: of all rows, without an index; `boxes` is the gradient with respect to the deltas.
template <class T>
void decode_boxes_backward(const SlotGradients<T>& gradients, const DecodeTensors<T>& tensors, ParallelFor threads);

}  // namespace libra
