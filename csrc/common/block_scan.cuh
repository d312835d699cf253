// Prefix sums over a block.
#pragma once

#include "common/block_reduce.cuh"

namespace libra {

template <class T>
__device__ __forceinline__ T warp_inclusive_sum(T value) {
  for (int offset = 1; offset < 32; offset *= 2) {
    const T before = __shfl_up_sync(kFullWarp, value, offset);
    if (static_cast<int>(threadIdx.x % 32) >= offset) value += before;
  }
  return value;
}

// Every thread of a block of kThreads calls it. Returns the sum of the values of the threads before; total: of all.
template <int kThreads, class T>
__device__ __forceinline__ T block_exclusive_sum(T value, T& total) {
  constexpr int kWarps = kThreads / 32;
  SHARED(T, warps, [kWarps]);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const T inclusive = warp_inclusive_sum(value);
  if (lane == 31) warps[warp] = inclusive;
  __syncthreads();
  if (warp == 0) {
    const T sum = warp_inclusive_sum(lane < kWarps ? warps[lane] : T(0));
    if (lane < kWarps) warps[lane] = sum;
  }
  __syncthreads();
  const T before = warp ? warps[warp - 1] : T(0);
  total = warps[kWarps - 1];
  __syncthreads();  // warps may be written again
  return before + inclusive - value;
}

}  // namespace libra
