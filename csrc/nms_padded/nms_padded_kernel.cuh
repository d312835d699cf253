// nms_padded on the GPU; no torch headers. README.md, CUDA: what it costs.
//
// key_kernel gives each slot a number: image, hash of the group, rank of the score. Sorted (by torch, between the
// launches, and stably, so that equal scores stay in the order of their slots), the numbers of one group of one image
// lie side by side: a segment. suppress_kernel: one block walks one segment (nms_padded_segment.cuh). select_kernel:
// one block an image finds the best of what all its segments kept, and sorts them.
#pragma once

#include "common/block_select.cuh"
#include "common/block_sort.cuh"
#include "nms_padded/nms_padded_segment.cuh"

namespace libra {

constexpr int kNmsKeyThreads = 256;
constexpr int kNmsSpan = 64;  // places whose segments a block takes: those that begin there
constexpr int kNmsSelectThreads = 512;
constexpr int kNmsListed = 2048;  // so many survivors of an image are sorted in shared memory

// grid [slots of all images / kNmsKeyThreads].
__global__ void __launch_bounds__(kNmsKeyThreads)
    nms_key_kernel(const __grid_constant__ NmsTensors tensors, const __grid_constant__ NmsShape shape,
                   const __grid_constant__ NmsRules rules, int64_t* keys) {
  const int64_t i = int64_t{blockIdx.x} * kNmsKeyThreads + threadIdx.x;
  if (i >= shape.total) return;
  const float score = tensors.scores[i];
  bool part = rules.has_score_threshold ? score > rules.score_threshold : score == score;
  part = part && (!tensors.valid || tensors.valid[i]);
  uint64_t key = kNmsNoKey;
  if (part && is_finite(nms_load(tensors.boxes + i))) {
    const int64_t group = tensors.groups ? tensors.groups[i] : 0;
    key = uint64_t{shape.segment(static_cast<uint32_t>(i / shape.slots), group)} << 32 | score_rank(score);
  }
  keys[i] = static_cast<int64_t>(key);
}

// grid [slots of all images / kNmsSpan].
__global__ void __launch_bounds__(kNmsThreads)
    nms_suppress_kernel(const __grid_constant__ NmsTensors tensors, const __grid_constant__ NmsShape shape,
                        const __grid_constant__ NmsRules rules, const __grid_constant__ NmsSorted sorted) {
  SHARED(NmsShared, shared);
  const int first = static_cast<int>(blockIdx.x) * kNmsSpan;
  if (sorted.segment(first) == kNmsNoSegment) return;  // here and behind there are only slots that take no part
  if (threadIdx.x < kNmsSpan) {
    const int64_t place = int64_t{first} + threadIdx.x;
    const uint32_t mine = place < shape.total ? sorted.segment(place) : kNmsNoSegment;
    const bool begin = mine != kNmsNoSegment && (place == 0 || sorted.segment(place - 1) != mine);
    const unsigned lanes = __ballot_sync(kFullWarp, begin);
    if (threadIdx.x % 32 == 0) shared.begins[threadIdx.x / 32] = lanes;
  }
  __syncthreads();
  for (int word = 0; word < kNmsSpan / 32; ++word) {
    for (unsigned left = shared.begins[word]; left; left &= left - 1) {
      nms_suppress_segment(tensors, shape, rules, sorted, first + 32 * word + __ffs(static_cast<int>(left)) - 1,
                           shared);
    }
  }
}

struct NmsOutputs {
  int64_t* index;  // [B, max_output]
  bool* valid;     // [B, max_output]
};

// The first place of a segment that is not below this one.
__device__ __forceinline__ int64_t nms_lower_bound(const NmsSorted& sorted, int64_t total, uint32_t segment) {
  int64_t low = 0, high = total;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (sorted.segment(middle) < segment) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// grid [B].
__global__ void __launch_bounds__(kNmsSelectThreads)
    nms_select_kernel(const __grid_constant__ NmsShape shape, const __grid_constant__ NmsRules rules,
                      const __grid_constant__ NmsSorted sorted, const __grid_constant__ NmsOutputs outputs) {
  constexpr int kCounters = 256;
  SHARED(uint64_t, list_of_few, [kNmsListed]);
  SHARED(uint32_t, histogram, [kCounters]);
  SHARED(int64_t, range, [2]);
  SHARED(uint64_t, limit);
  SHARED(uint32_t, need);
  SHARED(uint32_t, length);
  const uint32_t image = blockIdx.x;
  if (threadIdx.x < 2) {
    range[threadIdx.x] = nms_lower_bound(sorted, shape.total, shape.first_segment(image + threadIdx.x));
  }
  __syncthreads();
  const uint64_t* numbers = sorted.numbers + range[0];
  const int n = static_cast<int>(range[1] - range[0]), wanted = static_cast<int>(rules.max_output);
  uint32_t kept = 0;
  for (int i = threadIdx.x; i < n; i += kNmsSelectThreads) kept += numbers[i] != kNmsNotKept;
  kept = block_sum<kNmsSelectThreads>(kept);
  if (threadIdx.x == 0) {
    need = kept > static_cast<uint32_t>(wanted) ? wanted : 0;
    limit = kNmsNotKept - 1;
    length = 0;
  }
  __syncthreads();
  block_select<kNmsSelectThreads, kCounters>(
      1, &need, &limit, histogram, n, [&](int i) { return numbers[i] == kNmsNotKept ? -1 : 0; },
      [&](int i) { return numbers[i]; });
  __syncthreads();
  int64_t* index = outputs.index + static_cast<int64_t>(image) * wanted;
  bool* valid = outputs.valid + static_cast<int64_t>(image) * wanted;
  uint64_t* list = wanted <= kNmsListed ? list_of_few : reinterpret_cast<uint64_t*>(index);
  for (int start = 0; start < n; start += kNmsSelectThreads) {  // whole warps append
    const int i = start + threadIdx.x;
    const bool mine = i < n && numbers[i] <= limit;
    const uint32_t at = warp_append(mine, &length);
    if (mine) list[at] = numbers[i];
  }
  __syncthreads();
  const int found = static_cast<int>(length);
  block_sort<kNmsSelectThreads>(list, length);
  for (int i = threadIdx.x; i < wanted; i += kNmsSelectThreads) {
    index[i] = i < found ? static_cast<int64_t>(list[i] & 0xffffffffu) : 0;
    valid[i] = i < found;
  }
}

// Before torch's sort.
inline cudaError_t launch_nms_keys(const NmsTensors& tensors, const NmsShape& shape, const NmsRules& rules,
                                   int64_t* keys, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((shape.total + kNmsKeyThreads - 1) / kNmsKeyThreads);
  return launch(nms_key_kernel, dim3(blocks), dim3(kNmsKeyThreads), 0, stream, tensors, shape, rules, keys);
}

// After it. Neither is called where there are no slots, or max_output is 0.
inline cudaError_t launch_nms_padded(const NmsTensors& tensors, int64_t batch, const NmsShape& shape,
                                     const NmsRules& rules, const NmsSorted& sorted, const NmsOutputs& outputs,
                                     cudaStream_t stream) {
  cudaError_t error = cudaMemsetAsync(sorted.numbers, 0xff, shape.total * sizeof(uint64_t), stream);  // kNmsNotKept
  if (error != cudaSuccess) return error;
  const auto blocks = static_cast<unsigned>((shape.total + kNmsSpan - 1) / kNmsSpan);
  error = launch(nms_suppress_kernel, dim3(blocks), dim3(kNmsThreads), 0, stream, tensors, shape, rules, sorted);
  if (error != cudaSuccess) return error;
  return launch(nms_select_kernel, dim3(static_cast<unsigned>(batch)), dim3(kNmsSelectThreads), 0, stream, shape, rules,
                sorted, outputs);
}

}  // namespace libra
