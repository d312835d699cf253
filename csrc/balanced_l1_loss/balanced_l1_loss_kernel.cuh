// balanced_l1_loss on the GPU: one launch reads pred, target and weight once and writes loss and gradient; no torch
// headers.
//
// Memory binds, so a thread takes four neighbours at a time in 16-byte accesses, and asks for several such groups
// before it uses the first. A sum is deterministic: every block adds a fixed set of elements in a fixed order and
// leaves one partial sum in double, and the block that ends last adds those in a fixed order. How many blocks there are
// depends on n alone, so the result does not depend on the GPU.
#pragma once

#include "balanced_l1_loss/balanced_l1_loss_math.h"
#include "common/ordered_sum.cuh"
#include "common/vector_access.cuh"

namespace libra {

constexpr int kLossThreads = 256;
constexpr int kLossMaxBlocks = 4096;     // each leaves a partial sum that the last one adds
constexpr int64_t kLossOneBlock = 2048;  // elements up to which one block ends sooner than several that must meet
constexpr int64_t kLossWide = 1 << 18;   // elements from which on a thread has two groups in flight: the GPU is full

template <class T>
struct LossTensors {  // of n elements
  const T* pred;
  const T* target;
  const T* weight;  // null: 1
  bool per_box;     // weight has one element for every four of pred
  T* loss;          // null: it is added up
  T* gradient;      // null: it is not wanted
};

template <class T>
using LossGroup = Group<T, 4>;

constexpr int kLossApart = 4 * kLossThreads;  // elements from one of a thread's groups to the next

// The loss and the gradient of kGroups groups of a thread, the first at element `first`. Returns the sum of the losses.
template <bool kPublished, bool kWhole, int kGroups, class T>
__device__ __forceinline__ T balanced_l1_groups(const LossTensors<T>& tensors, int64_t first, int64_t n,
                                                const BalancedL1<T>& constants, T gradient_scale) {
  LossGroup<T> pred[kGroups], target[kGroups], weight[kGroups];
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    const int64_t at = first + g * kLossApart;
    pred[g] = load_group<kWhole>(tensors.pred, at, n);
    target[g] = load_group<kWhole>(tensors.target, at, n);
    if (!tensors.weight) {
      weight[g] = {{T(1), T(1), T(1), T(1)}};
    } else if (tensors.per_box) {
      const T whole = at < n ? tensors.weight[at / 4] : T(0);
      weight[g] = {{whole, whole, whole, whole}};
    } else {
      weight[g] = load_group<kWhole>(tensors.weight, at, n);
    }
  }
  T sum = T(0);
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    LossGroup<T> losses, slopes;
    T group_sum = T(0);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const T factor = weight[g].value[k], difference = pred[g].value[k] - target[g].value[k];
      T value, slope;
      balanced_l1<kPublished>(factor == T(0) ? T(0) : difference, constants, value, slope);
      losses.value[k] = value * factor;
      slopes.value[k] = slope * (factor * gradient_scale);
      group_sum += losses.value[k];
    }
    sum += group_sum;
    const int64_t at = first + g * kLossApart;
    if (tensors.loss) store_group<kWhole>(tensors.loss, at, n, losses);
    if (tensors.gradient) store_group<kWhole>(tensors.gradient, at, n, slopes);
  }
  return sum;
}

// grid [blocks], block [kLossThreads]. aligned: all of `tensors` begin at a multiple of 16 bytes.
template <bool kPublished, int kGroups, class T>
__global__ void __launch_bounds__(kLossThreads)
    balanced_l1_kernel(LossTensors<T> tensors, bool aligned, int64_t n, BalancedL1<T> constants, T gradient_scale,
                       OrderedSum sums, T* total) {
  constexpr int kChunk = kGroups * kLossApart;
  double sum = 0;
  for (int64_t chunk = static_cast<int64_t>(blockIdx.x) * kChunk; chunk < n;
       chunk += static_cast<int64_t>(gridDim.x) * kChunk) {
    const int64_t first = chunk + 4 * threadIdx.x;
    T part = T(0);
    if (aligned && chunk + kChunk <= n) {
      part = balanced_l1_groups<kPublished, true, kGroups>(tensors, first, n, constants, gradient_scale);
    } else {
#pragma unroll 1
      for (int g = 0; g < kGroups; ++g) {  // the same sum in the same order
        part += balanced_l1_groups<kPublished, false, 1>(tensors, first + g * kLossApart, n, constants, gradient_scale);
      }
    }
    sum += static_cast<double>(part);
  }
  if (total) add_up<kLossThreads>(sum, sums, total);
}

inline bool loss_is_wide(int64_t n, size_t bytes_per_element) { return n >= kLossWide && bytes_per_element == 4; }

// Blocks that n elements take; `partial` has one double more.
inline int balanced_l1_blocks(int64_t n, size_t bytes_per_element) {
  if (n <= kLossOneBlock) return 1;
  const int64_t chunk = kLossApart * (loss_is_wide(n, bytes_per_element) ? 2 : 1);
  const int64_t blocks = (n + chunk - 1) / chunk;
  return static_cast<int>(blocks < kLossMaxBlocks ? blocks : kLossMaxBlocks);
}

// total: the reduced loss; null for Reduction::kNone. partial: of balanced_l1_blocks() + 1 elements; null for kNone and
// with one block. ticket: as in OrderedSum.
template <class T>
cudaError_t launch_balanced_l1_loss(const LossTensors<T>& tensors, T* total, double* partial, int ticket, int64_t n,
                                    const BalancedL1<T>& constants, Reduction reduction, cudaStream_t stream) {
  const bool each = reduction == Reduction::kNone, mean = reduction == Reduction::kMean;
  if (each && n == 0) return cudaSuccess;
  const int blocks = balanced_l1_blocks(n, sizeof(T));
  const OrderedSum sums{partial, ticket, mean ? static_cast<double>(n) : 1.0};
  if (!each) {
    const cudaError_t error = clear_own_ticket(sums, blocks, stream);
    if (error != cudaSuccess) return error;
  }
  uintptr_t bits = reinterpret_cast<uintptr_t>(tensors.pred) | reinterpret_cast<uintptr_t>(tensors.target) |
                   reinterpret_cast<uintptr_t>(tensors.loss) | reinterpret_cast<uintptr_t>(tensors.gradient);
  if (!tensors.per_box) bits |= reinterpret_cast<uintptr_t>(tensors.weight);
  const auto run = [&](auto kernel) {
    return launch(kernel, dim3(blocks), dim3(kLossThreads), 0, stream, tensors, bits % 16 == 0, n, constants,
                  mean ? T(1) / static_cast<T>(n) : T(1), sums, total);
  };
  if constexpr (sizeof(T) == 4) {
    if (loss_is_wide(n, sizeof(T))) {
      return constants.published ? run(balanced_l1_kernel<true, 2, T>) : run(balanced_l1_kernel<false, 2, T>);
    }
  }
  return constants.published ? run(balanced_l1_kernel<true, 1, T>) : run(balanced_l1_kernel<false, 1, T>);
}

}  // namespace libra
