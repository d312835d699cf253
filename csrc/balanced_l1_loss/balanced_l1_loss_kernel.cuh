// balanced_l1_loss on the GPU: one pass over pred, target and weight writes loss and gradient; no torch headers.
//
// A sum is deterministic: every block adds a fixed set of elements in a fixed order and writes one partial sum in
// double; a second kernel of one block adds the partials in a fixed order.
#pragma once

#include "balanced_l1_loss/balanced_l1_loss_math.h"
#include "common/block_reduce.cuh"

namespace libra {

constexpr int kLossThreads = 256;
constexpr int kLossMaxBlocks = 1024;  // partial sums, whatever the GPU: the result does not depend on its size

// grid [blocks], block [kLossThreads]. n elements; weight, loss, gradient and partial may be null.
template <bool kPublished, class T>
__global__ void __launch_bounds__(kLossThreads)
    balanced_l1_kernel(const T* __restrict__ pred, const T* __restrict__ target, const T* __restrict__ weight,
                       T* __restrict__ loss, T* __restrict__ gradient, double* __restrict__ partial, int64_t n,
                       BalancedL1<T> constants, T gradient_scale) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kLossThreads;
  double sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kLossThreads + threadIdx.x; i < n; i += stride) {
    const T factor = weight ? weight[i] : T(1);
    T value = T(0), slope = T(0);
    if (factor != T(0)) {
      balanced_l1<kPublished>(pred[i] - target[i], constants, value, slope);
      value *= factor;
      slope *= factor * gradient_scale;
    }
    if (loss) loss[i] = value;
    if (gradient) gradient[i] = slope;
    sum += static_cast<double>(value);
  }
  if (!partial) return;
  sum = block_sum<kLossThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block adds the partial sums: loss = total * scale.
template <class T>
__global__ void __launch_bounds__(kLossThreads)
    balanced_l1_total_kernel(const double* __restrict__ partial, int count, double divisor, T* __restrict__ loss) {
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += kLossThreads) sum += partial[i];
  sum = block_sum<kLossThreads>(sum);
  if (threadIdx.x == 0) *loss = static_cast<T>(sum / divisor);
}

// Blocks that n elements take, and so the number of doubles in `partial`.
inline int balanced_l1_blocks(int64_t n) {
  const int64_t blocks = (n + kLossThreads - 1) / kLossThreads;
  return static_cast<int>(blocks < 1 ? 1 : blocks > kLossMaxBlocks ? kLossMaxBlocks : blocks);
}

// loss has n elements, or one; gradient n or is null; partial balanced_l1_blocks(n), or is null for Reduction::kNone.
template <class T>
cudaError_t launch_balanced_l1_loss(const T* pred, const T* target, const T* weight, T* loss, T* gradient,
                                    double* partial, int64_t n, const BalancedL1<T>& constants, Reduction reduction,
                                    cudaStream_t stream) {
  const bool each = reduction == Reduction::kNone;
  if (each && n == 0) return cudaSuccess;
  const T scale = reduction == Reduction::kMean ? T(1) / static_cast<T>(n) : T(1);
  const int blocks = balanced_l1_blocks(n);
  const auto kernel = constants.published ? balanced_l1_kernel<true, T> : balanced_l1_kernel<false, T>;
  const cudaError_t error = launch(kernel, dim3(blocks), dim3(kLossThreads), 0, stream, pred, target, weight,
                                   each ? loss : nullptr, gradient, partial, n, constants, scale);
  if (each || error != cudaSuccess) return error;
  const double divisor = reduction == Reduction::kMean ? static_cast<double>(n) : 1.0;
  return launch(balanced_l1_total_kernel<T>, dim3(1), dim3(kLossThreads), 0, stream, partial, blocks, divisor, loss);
}

}  // namespace libra
