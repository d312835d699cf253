// Box coding on the CPU: what an index chooses is gathered into one array per coordinate, a block at a time, and the
// formulas pass over these in vector code without branches.
#include "box_coding/box_coding_cpu_kernel.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include "common/vector_clones.h"

namespace libra {
namespace {

constexpr int kBlock = 128;          // elements at a time: some KiB of arrays, which stay in L1
constexpr int64_t kThreadWork = 16;  // blocks that are worth waking a thread for

// A block of boxes, deltas or gradients, one array per coordinate.
template <class T>
struct Block {
  T a[kBlock], b[kBlock], c[kBlock], d[kBlock];

  void set(int i, const Four<T>& four) { a[i] = four.a, b[i] = four.b, c[i] = four.c, d[i] = four.d; }
  Four<T> operator[](int i) const { return {a[i], b[i], c[i], d[i]}; }
};

template <class T>
constexpr Four<T> not_a_box() {
  constexpr T nan = std::numeric_limits<T>::quiet_NaN();
  return {nan, nan, nan, nan};
}

// Whole blocks: what is beyond their end is computed, of whatever lies there, and not stored.
template <class T>
LIBRA_VECTOR_CLONES void encode_block(const Block<T>& references, const Block<T>& targets, const Four<T>& stds,
                                      Block<T>& __restrict__ results) {
  const Four<T> s = stds;
  for (int i = 0; i < kBlock; ++i) {
    const Four<T> deltas = encode_box(references[i], targets[i], s);
    results.a[i] = deltas.a, results.b[i] = deltas.b, results.c[i] = deltas.c, results.d[i] = deltas.d;
  }
}

template <class T>
LIBRA_VECTOR_CLONES void decode_block(const Block<T>& references, const Block<T>& deltas, const Four<T>& stds,
                                      const Limits<T>& limits_in, Block<T>& __restrict__ results) {
  const Four<T> s = stds;
  const Limits<T> limits = limits_in;
  for (int i = 0; i < kBlock; ++i) {
    const Four<T> box = decode_box(references[i], deltas[i], s, limits);
    results.a[i] = box.a, results.b[i] = box.b, results.c[i] = box.c, results.d[i] = box.d;
  }
}

template <class T>
LIBRA_VECTOR_CLONES void decode_block_backward(const Block<T>& gradients, const Block<T>& references,
                                               const Block<T>& deltas, const Four<T>& stds, const Limits<T>& limits_in,
                                               Block<T>& __restrict__ results) {
  const Four<T> s = stds;
  const Limits<T> limits = limits_in;
  for (int i = 0; i < kBlock; ++i) {
    const Four<T> gradient = decode_box_backward(gradients[i], references[i], deltas[i], s, limits);
    results.a[i] = gradient.a, results.b[i] = gradient.b, results.c[i] = gradient.c, results.d[i] = gradient.d;
  }
}

// f(image, first, count) for the blocks of elements [0, elements) of every image.
template <class F>
void for_blocks(int64_t images, int64_t elements, ParallelFor threads, const F& f) {
  const int64_t blocks = (elements + kBlock - 1) / kBlock;
  parallel_for(threads, images * blocks, kThreadWork, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % blocks * kBlock;
      f(i / blocks, first, static_cast<int>(std::min<int64_t>(kBlock, elements - first)));
    }
  });
}

// The rows of a block's elements. False where an index is out of range.
template <class T>
bool gather(const DecodeTensors<T>& tensors, int64_t image, int64_t first, int count, Block<T>& references,
            Block<T>& deltas) {
  bool fits = true;
  for (int i = 0; i < count; ++i) {
    int64_t reference, delta;
    const bool found = tensors.find(image, static_cast<uint32_t>(first + i), reference, delta);
    references.set(i, found ? tensors.references[reference] : not_a_box<T>());
    deltas.set(i, found ? tensors.deltas[delta] : not_a_box<T>());
    fits = fits && found;
  }
  return fits;
}

}  // namespace

template <class T>
bool encode_boxes(const EncodeTensors<T>& tensors, ParallelFor threads) {
  std::atomic<bool> fits{true};
  for_blocks(tensors.images, tensors.elements(), threads, [&](int64_t image, int64_t first, int count) {
    Block<T> references{}, targets{}, results;
    for (int i = 0; i < count; ++i) {
      int64_t reference, target;
      const bool found = tensors.find(image, static_cast<uint32_t>(first + i), reference, target);
      references.set(i, found ? tensors.references[reference] : not_a_box<T>());
      targets.set(i, found ? tensors.targets[target] : not_a_box<T>());
      if (!found) fits = false;
    }
    encode_block(references, targets, tensors.stds, results);
    Four<T>* deltas = tensors.deltas + image * tensors.elements() + first;
    for (int i = 0; i < count; ++i) deltas[i] = results[i];
  });
  return fits;
}

template <class T>
bool decode_boxes(const DecodeTensors<T>& tensors, ParallelFor threads) {
  std::atomic<bool> fits{true};
  for_blocks(tensors.images, tensors.elements(), threads, [&](int64_t image, int64_t first, int count) {
    Block<T> references{}, deltas{}, results;
    if (!gather(tensors, image, first, count, references, deltas)) fits = false;
    decode_block(references, deltas, tensors.stds, tensors.limits(image), results);
    Four<T>* boxes = tensors.boxes + image * tensors.elements() + first;
    for (int i = 0; i < count; ++i) boxes[i] = results[i];
  });
  return fits;
}

template <class T>
void decode_boxes_backward(const SlotGradients<T>& gradients, const DecodeTensors<T>& tensors, ParallelFor threads) {
  for_blocks(tensors.images, tensors.elements(), threads, [&](int64_t image, int64_t first, int count) {
    Block<T> sums{}, references{}, deltas{}, results;
    bool chosen[kBlock];
    gather(tensors, image, first, count, references, deltas);
    const auto load = [](const Four<T>* from) { return *from; };
    for (int i = 0; i < count; ++i) {
      Four<T> sum{};
      chosen[i] = gradients.sum(image, static_cast<uint32_t>(first + i), load, sum);
      sums.set(i, sum);
    }
    decode_block_backward(sums, references, deltas, tensors.stds, tensors.limits(image), results);
    Four<T>* to = tensors.boxes + image * tensors.elements() + first;
    for (int i = 0; i < count; ++i) to[i] = chosen[i] ? results[i] : Four<T>{};
  });
}

template bool encode_boxes<float>(const EncodeTensors<float>&, ParallelFor);
template bool encode_boxes<double>(const EncodeTensors<double>&, ParallelFor);
template bool decode_boxes<float>(const DecodeTensors<float>&, ParallelFor);
template bool decode_boxes<double>(const DecodeTensors<double>&, ParallelFor);
template void decode_boxes_backward<float>(const SlotGradients<float>&, const DecodeTensors<float>&, ParallelFor);
template void decode_boxes_backward<double>(const SlotGradients<double>&, const DecodeTensors<double>&, ParallelFor);

}  // namespace libra
