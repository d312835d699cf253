// A block sorts items in shared or global memory: bitonic, so that no item is ever moved to a place that depends on
// chance.
#pragma once

#include <cstdint>

#include "common/cuda_compat.cuh"

namespace libra {

struct __align__(16) SortItem {
  uint64_t major, minor;  // ascending by major, then by minor

  LIBRA_HOST_DEVICE bool operator<(const SortItem& other) const {
    return major < other.major || (major == other.major && minor < other.minor);
  }
};

// Every thread of a block of kThreads calls it. n <= 2^30; places from n to the next power of two act as if they held
// the largest item: all comparisons put the smaller item first, so such a pair is in order already. In steps of up to
// 32 a warp compares items among 64 that only it touches, and waits for itself alone.
template <int kThreads, class Item>
__device__ __forceinline__ void block_sort(Item* items, uint32_t n) {
  uint32_t pairs = 1;
  while (2 * pairs < n) pairs *= 2;
  bool wide = true;                               // whether the last step mixed items of several warps
  for (uint32_t half = 1; half < n; half *= 2) {  // runs of `half` sorted items become runs of twice the length
    for (uint32_t stride = half; stride; stride /= 2) {
      if (wide || stride > 32) {
        __syncthreads();
      } else {
        __syncwarp();
      }
      wide = stride > 32;
      for (uint32_t pair = threadIdx.x; pair < pairs; pair += kThreads) {
        const uint32_t offset = pair & (stride - 1), begin = 2 * (pair - offset);
        // The first step of a merge compares mirror images, which makes the two runs one bitonic sequence.
        const uint32_t i = begin + offset, j = stride == half ? begin + 2 * stride - 1 - offset : i + stride;
        if (j >= n) continue;
        const Item a = items[i], b = items[j];
        if (b < a) {
          items[i] = b;
          items[j] = a;
        }
      }
    }
  }
  __syncthreads();
}

}  // namespace libra
