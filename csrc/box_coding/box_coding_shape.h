// The tensors of box coding, and which rows an element of the result is made of. B images, N reference rows, G target
// rows, S slots, C classes.
#pragma once

#include "box_coding/box_coding_math.h"

namespace libra {

template <class T>
struct EncodeTensors {
  const Four<T>* references;           // [B, N], or [N] of all images
  const Four<T>* targets;              // [B, G]
  const int64_t* index;                // [B, S], or null: slot s is of reference s
  const int64_t* target_index;         // [B, S], or null: slot s is of target s
  Four<T>* deltas;                     // [B, S]
  int64_t images, rows, targets_rows;  // B, N, G
  int64_t slots;                       // S
  bool shared;                         // `references` are those of all images
  Four<T> stds;

  LIBRA_HOST_DEVICE int64_t elements() const { return images * slots; }

  // The rows that element `e` is made of, from the beginning of their tensors; false where an index is out of range.
  LIBRA_HOST_DEVICE bool find(int64_t e, int64_t& reference, int64_t& target) const {
    const int64_t image = e / slots, slot = e % slots;
    const int64_t row = index ? index[e] : slot, target_row = target_index ? target_index[e] : slot;
    if (row < 0 || row >= rows || target_row < 0 || target_row >= targets_rows) return false;
    reference = shared ? row : image * rows + row;
    target = image * targets_rows + target_row;
    return true;
  }
};

template <class T>
struct DecodeTensors {
  const Four<T>* references;  // [B, N], or [N] of all images
  const Four<T>* deltas;      // [B, N, C]
  const int64_t* index;       // [B, S], or null: slot s is row s
  const T* sizes;             // [B, 2] (height, width), or null
  Four<T>* boxes;             // [B, S, C]
  int64_t images, rows;       // B, N
  int64_t slots, classes;     // S, C
  bool shared;                // `references` are those of all images
  Four<T> stds;

  LIBRA_HOST_DEVICE int64_t elements() const { return images * slots * classes; }

  // The rows that element `e` is made of, from the beginning of their tensors; false where an index is out of range.
  LIBRA_HOST_DEVICE bool find(int64_t e, int64_t& reference, int64_t& delta, int64_t& image) const {
    const int64_t line = e / classes;
    image = line / slots;
    const int64_t row = index ? index[line] : line % slots;
    if (row < 0 || row >= rows) return false;
    reference = shared ? row : image * rows + row;
    delta = (image * rows + row) * classes + e % classes;
    return true;
  }

  LIBRA_HOST_DEVICE Limits<T> limits(int64_t image) const {
    return sizes ? Limits<T>{T(0), sizes[2 * image + 1], sizes[2 * image]} : no_limits<T>();
  }
};

}  // namespace libra
