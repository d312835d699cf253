// box_regression_loss on the GPU: one launch reads each pair once and writes loss and gradients; no torch headers.
//
// One thread a pair, its boxes in 16-byte accesses. A sum is ordered_sum.cuh's.
#pragma once

#include "box_regression_loss/box_regression_loss_math.h"
#include "common/ordered_sum.cuh"
#include "common/reduction.h"
#include "common/vector_access.cuh"

namespace libra {

constexpr int kBoxLossThreads = 256;
constexpr int kBoxLossMaxBlocks = 4096;  // each leaves a partial sum that the last one adds

template <class T>
struct BoxLossArrays {  // of n pairs, four numbers each
  const T* pred;        // deltas, if there are references
  const T* target;
  const T* weight;      // [n], or null: 1
  const T* references;  // of reference_count boxes, of which pair i has i modulo their number; or null
  int64_t reference_count;
  const T* stds;       // [4], or null: 1
  T* loss;             // [n], or null: it is added up
  T* gradient;         // null: it is not wanted
  T* target_gradient;  // null: it is not wanted
  int64_t n;
};

template <class T>
__device__ __forceinline__ Box<T> load_box(const T* __restrict__ from, int64_t i, bool aligned) {
  const Group<T, 4> group =
      aligned ? load_group<true>(from, 4 * i, 4 * i + 4) : load_group<false>(from, 4 * i, 4 * i + 4);
  return {group.value[0], group.value[1], group.value[2], group.value[3]};
}

template <class T>
__device__ __forceinline__ void store_box(T* __restrict__ to, int64_t i, bool aligned, const Box<T>& box, T factor) {
  const Group<T, 4> group{{box.x1 * factor, box.y1 * factor, box.x2 * factor, box.y2 * factor}};
  if (aligned) {
    store_group<true>(to, 4 * i, 4 * i + 4, group);
  } else {
    store_group<false>(to, 4 * i, 4 * i + 4, group);
  }
}

// grid [blocks], block [kBoxLossThreads]. aligned: all arrays of boxes begin at a multiple of 16 bytes.
template <Kind kind, class T>
__global__ void __launch_bounds__(kBoxLossThreads, 1)
    box_loss_kernel(BoxLossArrays<T> arrays, bool aligned, T gradient_scale, OrderedSum sums, T* total) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kBoxLossThreads;
  Deltas<T> stds{T(1), T(1), T(1), T(1)};
  if (arrays.stds) stds = {arrays.stds[0], arrays.stds[1], arrays.stds[2], arrays.stds[3]};
  double sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kBoxLossThreads + threadIdx.x; i < arrays.n; i += step) {
    const T weight = arrays.weight ? arrays.weight[i] : T(1);
    T loss = T(0);
    Box<T> slope{}, target_slope{};  // of a masked pair, whatever it holds
    if (weight != T(0)) {
      Box<T> pred = load_box(arrays.pred, i, aligned);
      const Box<T> target = load_box(arrays.target, i, aligned);
      Deltas<T> by{};
      if (arrays.references) {
        const int64_t own = arrays.reference_count == arrays.n ? i : i % arrays.reference_count;
        const Decoded<T> decoded = decode(load_box(arrays.references, own, aligned), pred, stds);
        pred = decoded.box;
        by = decoded.by;
      }
      if (is_huge(pred) || is_huge(target)) {
        box_loss_huge<kind>(pred, target, loss, slope, target_slope);
      } else {
        box_loss<kind>(pred, target, loss, slope, target_slope);
      }
      if (arrays.references) slope = slope_of_deltas(slope, by);
      loss *= weight;
    }
    sum += static_cast<double>(loss);
    if (arrays.loss) arrays.loss[i] = loss;
    const T factor = weight * gradient_scale;
    if (arrays.gradient) store_box(arrays.gradient, i, aligned, slope, factor);
    if (arrays.target_gradient) store_box(arrays.target_gradient, i, aligned, target_slope, factor);
  }
  if (total) add_up<kBoxLossThreads>(sum, sums, total);
}

// Blocks that n pairs take; `partial` has one double more.
inline int box_loss_blocks(int64_t n) {
  const int64_t blocks = (n + kBoxLossThreads - 1) / kBoxLossThreads;
  return static_cast<int>(blocks < 1 ? 1 : (blocks < kBoxLossMaxBlocks ? blocks : kBoxLossMaxBlocks));
}

// total: the reduced loss; null for Reduction::kNone. partial: of box_loss_blocks() + 1 elements; null for kNone and
// with one block. ticket: as in OrderedSum.
template <class T>
cudaError_t launch_box_regression_loss(Kind kind, const BoxLossArrays<T>& arrays, T* total, double* partial, int ticket,
                                       Reduction reduction, cudaStream_t stream) {
  const bool each = reduction == Reduction::kNone, mean = reduction == Reduction::kMean;
  if (each && arrays.n == 0) return cudaSuccess;
  const int blocks = box_loss_blocks(arrays.n);
  const OrderedSum sums{partial, ticket, mean ? static_cast<double>(arrays.n) : 1.0};
  if (!each) {
    const cudaError_t error = clear_own_ticket(sums, blocks, stream);
    if (error != cudaSuccess) return error;
  }
  const uintptr_t bits = reinterpret_cast<uintptr_t>(arrays.pred) | reinterpret_cast<uintptr_t>(arrays.target) |
                         reinterpret_cast<uintptr_t>(arrays.references) | reinterpret_cast<uintptr_t>(arrays.gradient) |
                         reinterpret_cast<uintptr_t>(arrays.target_gradient);
  const T scale = mean ? T(1) / static_cast<T>(arrays.n) : T(1);
  const auto run = [&](auto kernel) {
    return launch(kernel, dim3(blocks), dim3(kBoxLossThreads), 0, stream, arrays, bits % 16 == 0, scale, sums, total);
  };
  switch (kind) {
    case Kind::kGiou:
      return run(box_loss_kernel<Kind::kGiou, T>);
    case Kind::kDiou:
      return run(box_loss_kernel<Kind::kDiou, T>);
    case Kind::kCiou:
      return run(box_loss_kernel<Kind::kCiou, T>);
    default:
      return run(box_loss_kernel<Kind::kIou, T>);
  }
}

}  // namespace libra
