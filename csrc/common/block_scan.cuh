// Prefix sums over a warp and over a block, and places in a list for those who want one.
#pragma once

#include <cstdint>

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

// A whole warp calls it: a place of its own, from *length on, for each lane that wants one, by one atomic addition.
__device__ __forceinline__ uint32_t warp_append(bool wanted, uint32_t* length) {
  const unsigned lanes = __ballot_sync(kFullWarp, wanted), lane = threadIdx.x % 32;
  if (lanes == 0) return 0;
  uint32_t begin = 0;
  if (lane == 0) begin = atomicAdd(length, static_cast<uint32_t>(__popc(lanes)));
  return __shfl_sync(kFullWarp, begin, 0) + static_cast<uint32_t>(__popc(lanes & ((1u << lane) - 1)));
}

}  // namespace libra
