// A block finds the quota smallest of many 64-bit numbers, in several groups at once, without moving any.
//
// Radix select from the highest digit: a histogram of the digit in shared memory tells in which bucket the quota-th
// number lies; the next pass looks only at the numbers of that bucket. A group is settled as soon as it takes its
// bucket whole, with uniform random numbers after about log(n) / log(256) passes.
#pragma once

#include <cstdint>

#include "common/block_scan.cuh"

namespace libra {

// Every thread of a block of kThreads calls it; a barrier must stand between it and the writes of its arguments.
//   need [groups], shared: how many numbers to take, fewer than the group has; 0: the group is settled already. 0 in
//   the end. limit [groups], shared: set for groups with need > 0: exactly `need` of the group's numbers are <= limit.
//   histogram [kCounters], shared, any content: at least 32 for each group.
//   group_of(i), number_of(i): of element i in [0, n); numbers of one group differ; group -1 takes no part.
template <int kThreads, int kCounters, class GroupOf, class NumberOf>
__device__ __forceinline__ void block_select(int groups, uint32_t* need, uint64_t* limit, uint32_t* histogram, int n,
                                             GroupOf group_of, NumberOf number_of) {
  int bits = 8;
  while (groups << bits > kCounters) --bits;
  const int lane = threadIdx.x % 32;
  bool pending;
  int top = 64;  // the bits from here on are known
  do {
    const int shift = top > bits ? top - bits : 0;
    for (int i = threadIdx.x; i < groups << bits; i += kThreads) histogram[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += kThreads) {
      const int group = group_of(i);
      if (group < 0 || need[group] == 0) continue;
      const uint64_t number = number_of(i);
      if (top < 64 && number >> top != limit[group] >> top) continue;
      const uint64_t digit = number >> shift & ((uint64_t(1) << (top - shift)) - 1);
      atomicAdd(&histogram[(group << bits) + static_cast<int>(digit)], 1u);
    }
    __syncthreads();
    pending = false;
    for (int group = threadIdx.x / 32; group < groups; group += kThreads / 32) {  // a warp for each
      const uint32_t wanted = need[group];
      if (wanted == 0) continue;
      const int each = 1 << bits >> 5;  // consecutive buckets of a lane
      const uint32_t* mine = histogram + (group << bits) + lane * each;
      uint32_t sum = 0;
      for (int b = 0; b < each; ++b) sum += mine[b];
      uint32_t below = warp_inclusive_sum(sum) - sum;
      __syncwarp();                                   // all have read `need`
      if (below < wanted && wanted <= below + sum) {  // in one lane
        int b = 0;
        for (; wanted > below + mine[b]; ++b) below += mine[b];
        const uint64_t known = top < 64 ? limit[group] >> top << top : 0;
        limit[group] = known | uint64_t(lane * each + b) << shift | ((uint64_t(1) << shift) - 1);
        pending |= wanted - below < mine[b];
        need[group] = wanted - below < mine[b] ? wanted - below : 0;
      }
      __syncwarp();
    }
    top = shift;
  } while (__syncthreads_or(pending));
}

}  // namespace libra
