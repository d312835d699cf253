// sigmoid_focal_loss on the GPU: one launch reads the logits once and writes loss and gradient; no torch headers.
//
// A thread takes neighbours in 16-byte accesses: four of float32, eight of the half types, two of float64. The row and
// class of its first element come from one division when the kernel starts; from then on both only advance. A sum is
// ordered_sum.cuh's.
#pragma once

#include "common/half.cuh"
#include "common/ordered_sum.cuh"
#include "common/reduction.h"
#include "common/vector_access.cuh"
#include "sigmoid_focal_loss/sigmoid_focal_loss_math.h"

namespace libra {

constexpr int kFocalThreads = 256;
constexpr int kFocalMaxBlocks = 4096;  // each leaves a partial sum that the last one adds

template <class S, class T>
struct FocalArrays {      // S: what the logits are stored as; T: float, or double if S is
  const S* logits;        // [rows, classes]
  const int64_t* labels;  // [rows]; one outside of [0, classes) is that of the background
  const uint8_t* mask;    // [rows], or null: all count
  T* loss;                // null: it is added up
  S* gradient;            // null: it is not wanted
  int64_t n;              // rows x classes
  int64_t classes;
};

template <class S>
constexpr int kFocalGroup = 16 / sizeof(S);  // neighbours that a thread takes at a time

// What a thread knows of the row it is in.
struct FocalRow {
  int64_t label;
  bool counts;
};

template <class S, class T>
__device__ __forceinline__ FocalRow focal_row(const FocalArrays<S, T>& arrays, int64_t row) {
  return {arrays.labels[row], !arrays.mask || arrays.mask[row] != 0};
}

// The elements from `first` on, of row `row` and class `column`. Returns the sum of the losses.
template <bool kSquare, bool kWhole, class S, class T>
__device__ __forceinline__ T focal_group(const FocalArrays<S, T>& arrays, const Focal<T>& constants, int64_t first,
                                         int64_t row, int64_t column, T gradient_scale) {
  constexpr int kCount = kFocalGroup<S>;
  Group<S, kCount> group = load_group<kWhole, kCount>(arrays.logits, first, arrays.n);
  FocalRow own = focal_row(arrays, row);
  T losses[kCount], sum = T(0);
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    if (kWhole || first + k < arrays.n) {
      if (column == arrays.classes) {
        column = 0;
        own = focal_row(arrays, ++row);
      }
      const bool yes = column == own.label;
      const T x = own.counts ? widen(group.value[k]) : T(0);
      const T weight = own.counts ? (yes ? constants.own : constants.other) : T(0);
      T slope;
      focal<kSquare>(yes ? -x : x, weight, constants.gamma, losses[k], slope);
      sum += losses[k];
      slope *= gradient_scale;
      narrow(yes ? -slope : slope, group.value[k]);
      ++column;
    }
  }
  if (arrays.loss) {
    constexpr int kPart = kCount < 4 ? kCount : 4;
#pragma unroll
    for (int k = 0; k < kCount; k += kPart) {
      Group<T, kPart> part;
#pragma unroll
      for (int j = 0; j < kPart; ++j) part.value[j] = losses[k + j];
      store_group<kWhole>(arrays.loss, first + k, arrays.n, part);
    }
  }
  if (arrays.gradient) store_group<kWhole>(arrays.gradient, first, arrays.n, group);
  return sum;
}

// grid [blocks], block [kFocalThreads]. aligned: all arrays begin at a multiple of 16 bytes. step_rows, step_column:
// how many rows, and classes beyond them, lie between a thread's groups.
template <bool kSquare, class S, class T>
__global__ void __launch_bounds__(kFocalThreads, sizeof(T) == 8 ? 1 : 3)
    focal_kernel(FocalArrays<S, T> arrays, bool aligned, Focal<T> constants, int64_t step_rows, int64_t step_column,
                 T gradient_scale, OrderedSum sums, T* total) {
  constexpr int kCount = kFocalGroup<S>;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kFocalThreads * kCount;
  int64_t first = (static_cast<int64_t>(blockIdx.x) * kFocalThreads + threadIdx.x) * kCount;
  double sum = 0;
  if (first < arrays.n) {
    int64_t row = first / arrays.classes, column = first - row * arrays.classes;
    for (; first < arrays.n; first += step) {
      const T part = aligned && first + kCount <= arrays.n
                         ? focal_group<kSquare, true, S, T>(arrays, constants, first, row, column, gradient_scale)
                         : focal_group<kSquare, false, S, T>(arrays, constants, first, row, column, gradient_scale);
      sum += static_cast<double>(part);
      row += step_rows;
      column += step_column;
      if (column >= arrays.classes) {
        column -= arrays.classes;
        ++row;
      }
    }
  }
  if (total) add_up<kFocalThreads>(sum, sums, total);
}

// Blocks that n elements take; `partial` has one double more.
inline int focal_blocks(int64_t n, size_t bytes_per_element) {
  const int64_t chunk = kFocalThreads * (16 / static_cast<int64_t>(bytes_per_element));
  const int64_t blocks = (n + chunk - 1) / chunk;
  return static_cast<int>(blocks < 1 ? 1 : (blocks < kFocalMaxBlocks ? blocks : kFocalMaxBlocks));
}

// total: the reduced loss; null for Reduction::kNone. partial: of focal_blocks() + 1 elements; null for kNone and with
// one block. ticket: as in OrderedSum. scaled_half: the gradient is float16's, of the summed loss and larger.
template <class S, class T>
cudaError_t launch_sigmoid_focal_loss(const FocalArrays<S, T>& arrays, T* total, double* partial, int ticket,
                                      const Focal<T>& constants, Reduction reduction, bool scaled_half,
                                      cudaStream_t stream) {
  const bool each = reduction == Reduction::kNone, mean = reduction == Reduction::kMean;
  if (each && arrays.n == 0) return cudaSuccess;
  const int blocks = focal_blocks(arrays.n, sizeof(S));
  const double n = static_cast<double>(arrays.n);
  const OrderedSum sums{partial, ticket, mean ? n : 1.0};
  if (!each) {
    const cudaError_t error = clear_own_ticket(sums, blocks, stream);
    if (error != cudaSuccess) return error;
  }
  const uintptr_t bits = reinterpret_cast<uintptr_t>(arrays.logits) | reinterpret_cast<uintptr_t>(arrays.loss) |
                         reinterpret_cast<uintptr_t>(arrays.gradient);
  const int64_t step = static_cast<int64_t>(blocks) * kFocalThreads * kFocalGroup<S>;
  const int64_t classes = arrays.classes > 0 ? arrays.classes : 1;
  const double scale = scaled_half ? kHalfGradientScale : (mean ? 1.0 / n : 1.0);
  const auto run = [&](auto kernel) {
    return launch(kernel, dim3(blocks), dim3(kFocalThreads), 0, stream, arrays, bits % 16 == 0, constants,
                  step / classes, step % classes, static_cast<T>(scale), sums, total);
  };
  return constants.square ? run(focal_kernel<true, S, T>) : run(focal_kernel<false, S, T>);
}

}  // namespace libra
