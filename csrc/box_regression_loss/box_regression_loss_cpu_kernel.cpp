// box_regression_loss on the CPU: one pass reads boxes, or deltas and references, and writes loss and gradients.
//
// A block of pairs is turned into one array per coordinate, so that the formula is vector code without branches. Pairs
// with a huge box, which that code cannot do, are then done again one by one. A sum is taken per chunk of blocks, in a
// fixed number of lanes, and the chunks' sums are added in their order.
#include "box_regression_loss/box_regression_loss_cpu_kernel.h"

#include <algorithm>

#include "common/vector_clones.h"

namespace libra {
namespace {

constexpr int64_t kChunk = 1024;    // pairs
constexpr int64_t kThreadWork = 4;  // chunks that are worth waking a thread for
constexpr int kBlock = 64;          // pairs at a time, which stay in L1
constexpr int kLanes = 16;          // independent partial sums: the order of addition is fixed, and still vector code

// Four numbers of each pair of a block, one array for each.
template <class T>
struct Columns {
  T x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock];

  LIBRA_FORMULA Box<T> operator[](int i) const { return {x1[i], y1[i], x2[i], y2[i]}; }
  LIBRA_FORMULA void set(int i, const Box<T>& box) { x1[i] = box.x1, y1[i] = box.y1, x2[i] = box.x2, y2[i] = box.y2; }
};

template <class T>
struct Block {
  Columns<T> pred, target, references, by, slope, target_slope;
  T weight[kBlock], loss[kBlock];
};

// Boxes [first, first + count); where the weight is 0, and beyond, empty ones, whatever is there.
template <class T>
LIBRA_FORMULA void load_boxes(const Box<T>* boxes, int count, const T* weight, bool weighted, Columns<T>& columns) {
  Box<T> padded[kBlock];
  if (count < kBlock) {
    std::fill(std::copy(boxes, boxes + count, padded), padded + kBlock, Box<T>{});
    boxes = padded;
  }
  for (int i = 0; i < kBlock; ++i) columns.set(i, boxes[i]);
  for (int i = 0; weighted && i < kBlock; ++i) {
    const bool counts = weight[i] != T(0);
    const Box<T> box = columns[i];
    columns.set(i, {counts ? box.x1 : T(0), counts ? box.y1 : T(0), counts ? box.x2 : T(0), counts ? box.y2 : T(0)});
  }
}

// Pairs [first, first + count). Those that do not count are of empty boxes: their slopes are finite, so that a weight
// of 0 makes exactly 0 of them.
template <class T>
LIBRA_FORMULA void load(const BoxLossTensors<T>& tensors, int64_t first, int count, Block<T>& block) {
  const bool weighted = tensors.weight;
  std::fill(block.weight, block.weight + kBlock, T(1));
  if (weighted) std::copy(tensors.weight + first, tensors.weight + first + count, block.weight);
  std::fill(block.weight + count, block.weight + kBlock, T(0));
  load_boxes(tensors.pred + first, count, block.weight, weighted, block.pred);
  load_boxes(tensors.target + first, count, block.weight, weighted, block.target);
  if (!tensors.references) return;
  const int64_t at = first % tensors.reference_count;
  if (at + count <= tensors.reference_count) {
    return load_boxes(tensors.references + at, count, block.weight, weighted, block.references);
  }
  Box<T> wrapped[kBlock];
  for (int i = 0; i < count; ++i) wrapped[i] = tensors.references[(at + i) % tensors.reference_count];
  load_boxes(wrapped, count, block.weight, weighted, block.references);
}

template <class T>
LIBRA_FORMULA void decode_block(Block<T>& block, const Deltas<T>& stds) {
  for (int i = 0; i < kBlock; ++i) {
    const Decoded<T> decoded = decode(block.references[i], block.pred[i], stds);
    block.pred.set(i, decoded.box);
    block.by.set(i, {decoded.by.x, decoded.by.y, decoded.by.w, decoded.by.h});
  }
}

// An integer as wide as T, so that a loop over both is vector code.
template <class T>
using Flag = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

// 1 unless is_huge(); without its branches.
template <class T>
LIBRA_FORMULA Flag<T> is_usual(T value) {
  return is_huge(value) ? 0 : 1;
}
template <class T>
LIBRA_FORMULA Flag<T> is_usual(const Box<T>& box) {
  return is_usual<T>(box.x1) & is_usual<T>(box.y1) & is_usual<T>(box.x2) & is_usual<T>(box.y2);
}

template <Kind kind, class T>
LIBRA_FORMULA void loss_of_block(Block<T>& block) {
  Flag<T> usual = 1;
  for (int i = 0; i < kBlock; ++i) {
    const Box<T> pred = block.pred[i], target = block.target[i];
    Box<T> slope, target_slope;
    box_loss<kind>(pred, target, block.loss[i], slope, target_slope);
    block.slope.set(i, slope);
    block.target_slope.set(i, target_slope);
  }
  for (int i = 0; i < kBlock; ++i) usual &= is_usual<T>(block.pred[i]) & is_usual<T>(block.target[i]);
  for (int i = 0; !usual && i < kBlock; ++i) {
    const Box<T> pred = block.pred[i], target = block.target[i];
    if (!is_huge(pred) && !is_huge(target)) continue;
    Box<T> slope, target_slope;
    box_loss_huge<kind>(pred, target, block.loss[i], slope, target_slope);
    block.slope.set(i, slope);
    block.target_slope.set(i, target_slope);
  }
}

template <class T>
LIBRA_FORMULA void store(const Columns<T>& slopes, const T* weight, T scale, int count, Box<T>* gradient) {
  Box<T> padded[kBlock];
  Box<T>* out = count < kBlock ? padded : gradient;
  for (int i = 0; i < kBlock; ++i) {
    const Box<T> slope = slopes[i];
    const T factor = weight[i] * scale;
    out[i] = {slope.x1 * factor, slope.y1 * factor, slope.x2 * factor, slope.y2 * factor};
  }
  if (count < kBlock) std::copy(out, out + count, gradient);
}

// The pairs [begin, end) of one chunk. Returns the sum of their losses.
template <Kind kind, class T>
LIBRA_VECTOR_CLONES double run_chunk(const BoxLossTensors<T>& tensors, int64_t begin, int64_t end, bool each,
                                     T gradient_scale) {
  Block<T> block;
  T partial[kLanes] = {};
  Deltas<T> stds{T(1), T(1), T(1), T(1)};
  if (tensors.stds) stds = {tensors.stds[0], tensors.stds[1], tensors.stds[2], tensors.stds[3]};
  for (int64_t start = begin; start < end; start += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, end - start));
    load(tensors, start, count, block);
    if (tensors.references) decode_block(block, stds);
    loss_of_block<kind>(block);
    for (int i = 0; i < kBlock; ++i) block.loss[i] *= block.weight[i];
    for (int i = 0; i < kBlock; i += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) partial[lane] += block.loss[i + lane];
    if (each) std::copy(block.loss, block.loss + count, tensors.loss + start);
    if (tensors.target_gradient) {
      store(block.target_slope, block.weight, gradient_scale, count, tensors.target_gradient + start);
    }
    if (!tensors.gradient) continue;
    for (int i = 0; tensors.references && i < kBlock; ++i) {
      block.slope.set(i, slope_of_deltas(block.slope[i],
                                         Deltas<T>{block.by.x1[i], block.by.y1[i], block.by.x2[i], block.by.y2[i]}));
    }
    store(block.slope, block.weight, gradient_scale, count, tensors.gradient + start);
  }
  double sum = 0;
  for (const T value : partial) sum += static_cast<double>(value);
  return sum;
}

}  // namespace

template <class T>
void box_regression_loss(Kind kind, const BoxLossTensors<T>& tensors, Reduction reduction, ParallelFor threads) {
  const bool each = reduction == Reduction::kNone, mean = reduction == Reduction::kMean;
  const T scale = mean ? T(1) / static_cast<T>(tensors.n) : T(1);
  double total = sum_chunks(threads, tensors.n, kChunk, kThreadWork, [&](int64_t begin, int64_t end) {
    return with_kind(
        kind, [&](auto chosen) { return run_chunk<decltype(chosen)::value, T>(tensors, begin, end, each, scale); });
  });
  if (each) return;
  if (mean) total /= static_cast<double>(tensors.n);  // no elements: NaN, as torch's mean
  *tensors.loss = static_cast<T>(total);
}

template void box_regression_loss<float>(Kind, const BoxLossTensors<float>&, Reduction, ParallelFor);
template void box_regression_loss<double>(Kind, const BoxLossTensors<double>&, Reduction, ParallelFor);

}  // namespace libra
