// Sums over a warp and over a block, in a fixed order.
#pragma once

#include "common/cuda_compat.cuh"

namespace libra {

constexpr unsigned kFullWarp = 0xffffffffu;

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int offset = 16; offset; offset >>= 1) value += __shfl_down_sync(kFullWarp, value, offset);
  return value;  // in lane 0
}

// Every thread of a block of kThreads calls it once; thread 0 gets the sum.
template <int kThreads, class T>
__device__ __forceinline__ T block_sum(T value) {
  SHARED(T, warps, [kThreads / 32]);
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x >= 32) return value;
  value = threadIdx.x < kThreads / 32 ? warps[threadIdx.x] : T(0);
  return warp_sum(value);
}

}  // namespace libra
