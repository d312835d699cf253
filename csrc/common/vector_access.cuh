// Several neighbours in memory in one access.
#pragma once

#include <cstdint>

#include "common/cuda_compat.cuh"

namespace libra {

// kCount neighbours: one access of 16 bytes, or several.
template <class T, int kCount>
struct alignas(16) Group {
  static_assert(kCount * sizeof(T) % 16 == 0);
  T value[kCount];
};

// Elements [first, first + kCount), those from n on as 0. kWhole: all of them exist, at a multiple of 16 bytes.
template <bool kWhole, int kCount = 4, class T>
__device__ __forceinline__ Group<T, kCount> load_group(const T* __restrict__ from, int64_t first, int64_t n) {
  if constexpr (kWhole) return *reinterpret_cast<const Group<T, kCount>*>(from + first);
  Group<T, kCount> group{};
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    if (first + k < n) group.value[k] = from[first + k];
  }
  return group;
}

template <bool kWhole, int kCount, class T>
__device__ __forceinline__ void store_group(T* __restrict__ to, int64_t first, int64_t n,
                                            const Group<T, kCount>& group) {
  if constexpr (kWhole) {
    *reinterpret_cast<Group<T, kCount>*>(to + first) = group;
  } else {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if (first + k < n) to[first + k] = group.value[k];
    }
  }
}

}  // namespace libra
