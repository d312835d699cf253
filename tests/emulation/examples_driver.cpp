// Small kernels for test_runtime.py. Each comes in a right version (bug 0) and in versions with one seeded mistake, of
// the kinds that kernels in csrc could have: the tests show that the emulation finds them.
#include "common/cuda_compat.cuh"

namespace {

constexpr int kThreads = 64;
constexpr unsigned kFull = 0xffffffffu;

enum ReverseBug {
  kNoBarrier = 1,
  kBarrierInBranch,
  kTwoBarriers,
  kTileTooShort,
  kOneNotWritten,
  kNoBarrierAtLoopEnd,
  kStoreAfterEnd
};

// Reverses every run of 64 numbers in place of `output`; one block does `rounds` of them.
template <int kBug>
__global__ void __launch_bounds__(kThreads)
    reverse_kernel(const float* __restrict__ input, float* __restrict__ output, int64_t rounds) {
  SHARED(float, tile, [kBug == kTileTooShort ? kThreads - 1 : kThreads]);
  const int thread = threadIdx.x;
  for (int64_t round = 0; round < rounds; ++round) {
    float* shared = tile;
    if (kBug != kOneNotWritten || thread != 5) shared[thread] = input[round * kThreads + thread];
    if (kBug == kBarrierInBranch) {
      if (thread < 32) __syncthreads();
    } else if (kBug == kTwoBarriers) {
      if (thread < 32)
        __syncthreads();
      else
        __syncthreads();
    } else if (kBug != kNoBarrier) {
      __syncthreads();
    }
    output[round * kThreads + thread + (kBug == kStoreAfterEnd)] = shared[kThreads - 1 - thread];
    if (kBug != kNoBarrierAtLoopEnd) __syncthreads();
  }
}

enum SumBug { kHalfMask = 1, kLaneLeftOut, kBranch, kReturnedLane, kMixedWithBarrier };

// Sum of 32 numbers, to every lane.
template <int kBug>
__global__ void __launch_bounds__(32) sum_kernel(const int* __restrict__ input, int* __restrict__ output) {
  const int lane = threadIdx.x;
  int value = input[lane];
  if (kBug == kReturnedLane && lane == 7) return;
  if (kBug == kMixedWithBarrier && lane >= 16) __syncthreads();
  for (int offset = 16; offset; offset >>= 1) {
    if (kBug == kHalfMask) {
      if (lane < 16) value += __shfl_xor_sync(0xffffu, value, offset);
    } else if (kBug == kLaneLeftOut) {
      value += __shfl_xor_sync(kFull & ~(1u << 3), value, offset);
    } else if (kBug == kBranch) {
      if (lane < 16)
        value += __shfl_xor_sync(kFull, value, offset);
      else
        value += __shfl_xor_sync(kFull, value, offset);
    } else {
      value += __shfl_xor_sync(kFull, value, offset);
    }
  }
  output[lane] = value;
}

enum CountBug {
  kOnePastTheCount = 1,
  kBeforeTheStart,
  kIntOverflow,
  kStoresToInput,
  kMisaligned,
  kPlainSum,
  kOneSum,
  kNoLastBarrier
};

// Sum of the first count[image] numbers of every image, [B, N] -> [B]; one block an image.
template <int kBug>
__global__ void count_kernel(const int* __restrict__ values, const int* __restrict__ counts, int* __restrict__ sums,
                             int n) {
  SHARED(int, total);
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  const int image = blockIdx.x, count = counts[image] + (kBug == kOnePastTheCount);
  for (int i = int(threadIdx.x) - (kBug == kBeforeTheStart); i < count; i += blockDim.x) {
    const int value = values[int64_t(image) * n + i];
    if (kBug == kPlainSum)
      total += value;
    else
      atomicAdd(&total, value);
  }
  if (kBug == kIntOverflow && threadIdx.x == 31) sums[image] = n * 0x7000000;
  if (kBug == kStoresToInput) const_cast<int*>(values)[0] = 1;
  if (kBug == kMisaligned) atomicAdd(&total, reinterpret_cast<const int4*>(values + 1)->x);
  if (kBug != kNoLastBarrier) __syncthreads();
  if (threadIdx.x == 0) sums[kBug == kOneSum ? 0 : image] = total;
}

// Every thread gets its neighbour's number, through shared memory.
__global__ void neighbour_kernel(const int* __restrict__ input, int* __restrict__ output, bool synchronise) {
  SHARED(int, numbers, [64]);
  numbers[threadIdx.x] = input[threadIdx.x];
  if (synchronise) __syncwarp();
  output[threadIdx.x] = numbers[threadIdx.x ^ 1];
}

// The order in which threads of a block and blocks of a grid reach a place, as linear indices.
__global__ void order_kernel(int* __restrict__ order, int* __restrict__ reached) {
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z),
            threads = blockDim.x * blockDim.y * blockDim.z;
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  order[atomicAdd(reached, 1)] = block * threads + thread;
}

// One row of `results` for each operation of a warp, [12, 32].
__global__ void warp_kernel(const int* __restrict__ input, long long* __restrict__ results) {
  const int lane = threadIdx.x, value = input[lane];
  int row = 0;
  const auto store = [&](long long result) { results[row++ * 32 + lane] = result; };
  store(__shfl_sync(kFull, value, 5));
  store(__shfl_sync(kFull, value, 3, 8));
  store(__shfl_up_sync(kFull, value, 2));
  store(__shfl_down_sync(kFull, value, 2, 16));
  store(__shfl_xor_sync(kFull, (long long)value << 32, 1));
  store(__ballot_sync(kFull, value > 0));
  store(__any_sync(kFull, value == input[9]) + 2 * __all_sync(kFull, value == input[9]));
  store(__reduce_min_sync(kFull, value));
  store(__reduce_max_sync(kFull, unsigned(value)));
  store(__reduce_add_sync(kFull, value));
  store(__match_any_sync(kFull, value & 3));
  store(__syncthreads_count(value > 0) + 100 * __syncthreads_or(value > 0) + 1000 * __syncthreads_and(value > 0));
}

__global__ void half_kernel(const float* __restrict__ input, __half* __restrict__ half,
                            __nv_bfloat16* __restrict__ bfloat, float* __restrict__ back, int64_t n) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  half[i] = __float2half(input[i]);
  bfloat[i] = __float2bfloat16(input[i]);
  back[i] = __half2float(half[i]);
}

// As much synchronisation as the heaviest kernels have: per target a warp's maximum, a block's, and one atomic.
__global__ void __launch_bounds__(256)
    maxima_kernel(const float* __restrict__ values, const float* __restrict__ factors,
                  unsigned long long* __restrict__ best, int n, int m) {
  DYN_SHARED(unsigned long long, warps);
  const int i = blockIdx.x * blockDim.x + threadIdx.x, image = blockIdx.y, lane = threadIdx.x % 32;
  for (int j = 0; j < m; ++j) {
    const float product = i < n ? values[int64_t(image) * n + i] * factors[int64_t(image) * m + j] : 0.0f;
    unsigned long long key = (unsigned long long)__float_as_uint(product) << 32 | unsigned(i);
    for (int offset = 16; offset; offset >>= 1) key = max(key, __shfl_xor_sync(kFull, key, offset));
    if (lane == 0) warps[threadIdx.x / 32] = key;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) key = max(key, warps[warp]);
      atomicMax(&best[int64_t(image) * m + j], key);
    }
    __syncthreads();
  }
}

}  // namespace

#define CASE(kernel, bug, ...) \
  case bug:                    \
    return launch(kernel<bug>, __VA_ARGS__)

extern "C" int run_reverse(int64_t bug, const float* input, float* output, int64_t rounds) {
  switch (bug) {
    CASE(reverse_kernel, 0, 1, kThreads, 0, nullptr, input, output, rounds);
    CASE(reverse_kernel, kNoBarrier, 1, kThreads, 0, nullptr, input, output, rounds);
    CASE(reverse_kernel, kBarrierInBranch, 1, kThreads, 0, nullptr, input, output, rounds);
    CASE(reverse_kernel, kTwoBarriers, 1, kThreads, 0, nullptr, input, output, rounds);
    CASE(reverse_kernel, kTileTooShort, 1, kThreads, 0, nullptr, input, output, rounds);
    CASE(reverse_kernel, kOneNotWritten, 1, kThreads, 0, nullptr, input, output, rounds);
    CASE(reverse_kernel, kNoBarrierAtLoopEnd, 1, kThreads, 0, nullptr, input, output, rounds);
    CASE(reverse_kernel, kStoreAfterEnd, 1, kThreads, 0, nullptr, input, output, rounds);
  }
  return cudaErrorInvalidValue;
}

extern "C" int run_sum(int64_t bug, const int* input, int* output) {
  switch (bug) {
    CASE(sum_kernel, 0, 1, 32, 0, nullptr, input, output);
    CASE(sum_kernel, kHalfMask, 1, 32, 0, nullptr, input, output);
    CASE(sum_kernel, kLaneLeftOut, 1, 32, 0, nullptr, input, output);
    CASE(sum_kernel, kBranch, 1, 32, 0, nullptr, input, output);
    CASE(sum_kernel, kReturnedLane, 1, 32, 0, nullptr, input, output);
    CASE(sum_kernel, kMixedWithBarrier, 1, 32, 0, nullptr, input, output);
  }
  return cudaErrorInvalidValue;
}

extern "C" int run_count(int64_t bug, const int* values, const int* counts, int* sums, int64_t images, int64_t n) {
  switch (bug) {
    CASE(count_kernel, 0, images, 32, 0, nullptr, values, counts, sums, n);
    CASE(count_kernel, kOnePastTheCount, images, 32, 0, nullptr, values, counts, sums, n);
    CASE(count_kernel, kBeforeTheStart, images, 32, 0, nullptr, values, counts, sums, n);
    CASE(count_kernel, kIntOverflow, images, 32, 0, nullptr, values, counts, sums, n);
    CASE(count_kernel, kStoresToInput, images, 32, 0, nullptr, values, counts, sums, n);
    CASE(count_kernel, kMisaligned, images, 32, 0, nullptr, values, counts, sums, n);
    CASE(count_kernel, kPlainSum, images, 32, 0, nullptr, values, counts, sums, n);
    CASE(count_kernel, kOneSum, images, 32, 0, nullptr, values, counts, sums, n);
    CASE(count_kernel, kNoLastBarrier, images, 32, 0, nullptr, values, counts, sums, n);
  }
  return cudaErrorInvalidValue;
}

extern "C" int run_neighbour(const int* input, int* output, int64_t synchronise) {
  return launch(neighbour_kernel, 1, 64, 0, nullptr, input, output, synchronise);
}

extern "C" int run_order(int* order, int* reached, int64_t threads) {
  return launch(order_kernel, dim3(2, 3, 2), dim3(threads, 2, 2), 0, nullptr, order, reached);
}

extern "C" int run_warp(const int* input, long long* results) {
  return launch(warp_kernel, 1, 32, 0, nullptr, input, results);
}

extern "C" int run_half(const float* input, __half* half, __nv_bfloat16* bfloat, float* back, int64_t n) {
  return launch(half_kernel, (n + 255) / 256, 256, 0, nullptr, input, half, bfloat, back, n);
}

extern "C" int run_maxima(const float* values, const float* factors, unsigned long long* best, int64_t images,
                          int64_t n, int64_t m, int64_t shared_bytes) {
  cudaMemsetAsync(best, 0, images * m * sizeof(*best), nullptr);
  return launch(maxima_kernel, dim3((n + 255) / 256, images), 256, shared_bytes, nullptr, values, factors, best, n, m);
}
