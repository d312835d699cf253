// The tensors of box coding, and which rows an element of the result is made of. B images, N reference rows, G target
// rows, S slots, C classes.
#pragma once

#include "box_coding/box_coding_math.h"

namespace libra {

constexpr int64_t kMaxElements = int64_t(1) << 31;  // of the result, in an image

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

  LIBRA_HOST_DEVICE int64_t elements() const { return slots; }  // of an image

  // The rows that an element of an image is made of, from the beginning of their tensors; false where an index is out
  // of range.
  LIBRA_HOST_DEVICE bool find(int64_t image, uint32_t slot, int64_t& reference, int64_t& target) const {
    const int64_t row = index ? index[image * slots + slot] : slot;
    const int64_t target_row = target_index ? target_index[image * slots + slot] : slot;
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

  LIBRA_HOST_DEVICE int64_t elements() const { return slots * classes; }  // of an image

  // The rows that an element of an image is made of, from the beginning of their tensors; false where an index is out
  // of range.
  LIBRA_HOST_DEVICE bool find(int64_t image, uint32_t element, int64_t& reference, int64_t& delta) const {
    const uint32_t slot = classes == 1 ? element : element / static_cast<uint32_t>(classes);
    const int64_t row = index ? index[image * slots + slot] : slot;
    if (row < 0 || row >= rows) return false;
    reference = shared ? row : image * rows + row;
    delta = (image * rows + row) * classes + (element - slot * static_cast<uint32_t>(classes));
    return true;
  }

  LIBRA_HOST_DEVICE Limits<T> limits(int64_t image) const {
    return sizes ? Limits<T>{T(0), sizes[2 * image + 1], sizes[2 * image]} : no_limits<T>();
  }
};

// The gradient of boxes that an index chose, which goes to the rows they are of. The index rises, so that the slots of
// a row lie side by side; positions that are no row's belong to none.
template <class T>
struct SlotGradients {
  const Four<T>* gradient;  // [B, S, C]
  const int64_t* index;     // [B, S], rising in each image, or null: slot s is of row s
  int64_t slots, classes;   // S, C

  // The slots [begin, end) of a row, counted over all images.
  LIBRA_HOST_DEVICE void find(int64_t image, int64_t row, int64_t& begin, int64_t& end) const {
    const int64_t first = image * slots, last = first + slots;
    begin = first + row;
    end = row < slots ? begin + 1 : begin;  // an index of no slots is null, too
    if (!index) return;
    int64_t high = last;
    for (begin = first; begin < high;) {
      const int64_t middle = begin + (high - begin) / 2;
      if (index[middle] < row) {
        begin = middle + 1;
      } else {
        high = middle;
      }
    }
    for (end = begin; end < last && index[end] == row;) ++end;
  }

  // The sum over the slots of an element's row, in their order; false where it has none. load(pointer): of a Four<T>.
  template <class Load>
  LIBRA_HOST_DEVICE bool sum(int64_t image, uint32_t element, const Load& load, Four<T>& result) const {
    const uint32_t row = classes == 1 ? element : element / static_cast<uint32_t>(classes);
    const uint32_t box = element - row * static_cast<uint32_t>(classes);  // of the slot
    int64_t begin, end;
    find(image, row, begin, end);
    if (begin == end) return false;
    result = load(gradient + begin * classes + box);
    for (int64_t slot = begin + 1; slot < end; ++slot) {
      const Four<T> more = load(gradient + slot * classes + box);
      result = {result.a + more.a, result.b + more.b, result.c + more.c, result.d + more.d};
    }
    return true;
  }
};

}  // namespace libra
