// sample_iou_balanced on the GPU: one block draws the samples of one image; no torch headers.
//
// A pass gives every candidate its group (an IoU bin, outside, positive, ...) and counts them. Each draw then gives its
// candidates their random words, finds by radix select the limit below which exactly the quota lies, and marks who is
// taken. Instance-balanced positives are sorted by (target, word) for their place in their target's line, and by
// (place, word) for the order in which they are dealt. The last pass writes the taken ones in the order of the
// candidates. Atomics only count and append to what is sorted afterwards: the result does not depend on the order of
// threads.
#pragma once

#include "common/block_reduce.cuh"
#include "common/block_scan.cuh"
#include "common/block_select.cuh"
#include "common/block_sort.cuh"
#include "sample_iou_balanced/sample_iou_balanced_math.h"

namespace libra {

constexpr int kSampleThreads = 1024;
constexpr int kSharedPositives = 2048;  // so many are sorted in shared memory; more in the workspace

// Global memory that the kernel works in, for B images of N candidates.
struct SampleWorkspace {
  uint8_t* group;   // [B, N]: a candidate's group, or that it is taken
  uint32_t* word;   // [B, N]: its random word in the current draw
  SortItem* items;  // [B, N], or null where sample_needs_items is false
};

inline bool sample_needs_items(int64_t candidates, const SampleOptions& options) {
  return options.instance_balanced && candidates > kSharedPositives;
}

struct SampleImage {
  uint8_t* group;
  uint32_t* word;
  int n;
  uint32_t image;
  uint64_t seed;
};

struct SampleShared {
  SortItem scratch[kSharedPositives];  // also the histograms of the select
  uint64_t limit[kMaxBins];
  uint32_t count[kMaxGroups];  // candidates in each group
  uint32_t available[kMaxBins], need[kMaxBins];
  float edges[kMaxBins + 1], warp_max[kSampleThreads / 32];
  uint32_t appended;
};
static_assert(sizeof(SortItem) * kSharedPositives >= sizeof(uint32_t) * kSelectCounters, "the scratch serves both");

__device__ inline float block_max_iou(const float* iou, int n, SampleShared& shared) {
  float best = -INFINITY;
  for (int i = threadIdx.x; i < n; i += kSampleThreads) best = iou[i] > best ? iou[i] : best;
  for (int offset = 16; offset; offset /= 2) {
    const float other = __shfl_xor_sync(kFullWarp, best, offset);
    best = other > best ? other : best;
  }
  if (threadIdx.x % 32 == 0) shared.warp_max[threadIdx.x / 32] = best;
  __syncthreads();
  for (int warp = 0; warp < kSampleThreads / 32; ++warp) best = fmaxf(best, shared.warp_max[warp]);
  return best;
}

// Writes group [n] and counts the groups.
__device__ inline void find_groups(const SampleImage& at, const float* iou, const int8_t* state,
                                   const SampleOptions& options, SampleShared& shared) {
  const double low = options.published ? 0.0 : options.low;
  const double high = options.published ? block_max_iou(iou, at.n, shared) : options.high;
  const int thread = threadIdx.x;
  if (thread <= options.num_bins) shared.edges[thread] = bin_edge(low, high, options.num_bins, thread);
  if (thread < options.groups()) shared.count[thread] = 0;
  __syncthreads();
  const float first = shared.edges[0], last = shared.edges[options.num_bins];
  for (int start = 0; start < at.n; start += kSampleThreads) {  // whole warps, for the vote
    const int i = start + thread;
    int group = -1;
    if (i < at.n) {
      const float value = iou[i];
      int bin = 0;
      for (int k = 1; k < options.num_bins; ++k) bin += value >= shared.edges[k];
      group = candidate_group(bin, value, state[i], first, last, options);
      at.group[i] = static_cast<uint8_t>(group);
    }
    const unsigned same = __match_any_sync(kFullWarp, group);  // one atomic for all lanes of a group
    if (group >= 0 && thread % 32 == __ffs(same) - 1) atomicAdd(&shared.count[group], __popc(same));
  }
  __syncthreads();
}

// Of the groups first..last, each takes its `quota` smallest composites of the word, or all if fewer; `together`: the
// groups are one. shared.available [groups, or 1] tells how many there are. Ends with a barrier.
template <SampleWord kWord>
__device__ __noinline__ void draw(const SampleImage& at, int first, int last, bool together, uint32_t quota,
                                  uint8_t mark, SampleShared& shared) {
  const int slots = together ? 1 : last - first + 1, thread = threadIdx.x;
  const auto slot_of = [&](int i) {
    const int group = at.group[i];
    return group < first || group > last ? -1 : together ? 0 : group - first;
  };
  bool part = false;  // some group is taken in part
  if (thread < slots) {
    part = shared.available[thread] > quota;
    shared.need[thread] = part ? quota : 0;
    shared.limit[thread] = ~uint64_t(0);
  }
  if (__syncthreads_or(part)) {
    for (int i = thread; i < at.n; i += kSampleThreads) {
      const int slot = slot_of(i);
      if (slot >= 0 && shared.need[slot]) at.word[i] = philox(i, at.image, at.seed).word[kWord];
    }
    __syncthreads();
    block_select<kSampleThreads>(slots, shared.need, shared.limit, reinterpret_cast<uint32_t*>(shared.scratch), at.n,
                                 slot_of, [&](int i) { return composite(at.word[i], i); });
  }
  for (int i = thread; i < at.n; i += kSampleThreads) {
    const int slot = slot_of(i);
    if (slot < 0) continue;
    const uint64_t limit = shared.limit[slot];  // all ones: the group is taken whole, and has no words
    if (limit == ~uint64_t(0) || composite(at.word[i], i) <= limit) at.group[i] = mark;
  }
  __syncthreads();
}

// Positives in rounds: `quota` of more, the first in the order (place in the line of their target, word, index).
__device__ inline void deal_positives(const SampleImage& at, const int64_t* target, SortItem* items, int quota,
                                      const SampleOptions& options, SampleShared& shared) {
  const int thread = threadIdx.x;
  const uint32_t positives = shared.count[options.positives()];
  if (positives <= kSharedPositives) items = shared.scratch;
  if (thread == 0) shared.appended = 0;
  __syncthreads();
  for (int i = thread; i < at.n; i += kSampleThreads) {
    if (at.group[i] != options.positives()) continue;
    const uint32_t word = philox(i, at.image, at.seed).word[kPositiveWord];
    items[atomicAdd(&shared.appended, 1u)] = {static_cast<uint64_t>(target[i]), composite(word, i)};
  }
  block_sort<kSampleThreads>(items, positives);
  for (uint32_t p = thread; p < positives; p += kSampleThreads) {
    uint32_t begin = 0, end = p;  // the first item of the same target lies in [begin, end]
    while (begin < end) {
      const uint32_t middle = (begin + end) / 2;
      if (items[middle].major < items[p].major) {
        begin = middle + 1;
      } else {
        end = middle;
      }
    }
    items[p].minor = composite(p - begin, static_cast<uint32_t>(items[p].minor));  // others read only `major` now
  }
  __syncthreads();
  for (uint32_t p = thread; p < positives; p += kSampleThreads) {
    const uint32_t candidate = static_cast<uint32_t>(items[p].minor), place = items[p].minor >> 32;
    const uint32_t word = philox(candidate, at.image, at.seed).word[kLastRoundWord];
    items[p] = {composite(place, word), candidate};
  }
  block_sort<kSampleThreads>(items, positives);
  for (int p = thread; p < quota; p += kSampleThreads) at.group[items[p].minor] = kTakenPositive;
  __syncthreads();
}

__device__ inline int take_positives(const SampleImage& at, const int64_t* target, SortItem* items,
                                     const SampleOptions& options, SampleShared& shared) {
  const int group = options.positives(), available = static_cast<int>(shared.count[group]);
  const int quota = min(available, options.max_positives);
  if (quota == 0) return 0;
  if (options.instance_balanced && quota < available) {
    deal_positives(at, target, items, quota, options, shared);
  } else {
    if (threadIdx.x == 0) shared.available[0] = available;
    draw<kPositiveWord>(at, group, group, true, quota, kTakenPositive, shared);
  }
  return quota;
}

__device__ inline int take_negatives(const SampleImage& at, int count, const SampleOptions& options,
                                     SampleShared& shared) {
  const int thread = threadIdx.x, bins = options.num_bins;
  const int quota = count / bins;
  int left = static_cast<int>(shared.count[options.outside()]), taken = 0;  // left: of the bins and outside
  for (int bin = 0; bin < bins; ++bin) {
    const int available = static_cast<int>(shared.count[bin]);
    taken += min(available, quota);
    left += available - min(available, quota);
  }
  if (quota > 0) {
    if (thread < bins) shared.available[thread] = shared.count[thread];
    draw<kBinWord>(at, 0, bins - 1, false, quota, kTakenNegative, shared);
  }
  for (int tier = 0; tier < 2; ++tier) {
    const int first = tier == 0 ? 0 : options.last_resort(), last = tier == 0 ? options.outside() : first;
    const int available = tier == 0 ? left : static_cast<int>(shared.count[first]);
    const int refill = min(count - taken, available);
    if (refill == 0) continue;
    if (thread == 0) shared.available[0] = available;
    draw<kRefillWord>(at, first, last, true, refill, kTakenNegative, shared);
    taken += refill;
  }
  return taken;
}

// Positives, then negatives, each in the order of the candidates, then padding: index, valid, positive [num_samples].
__device__ inline void write_samples(const SampleImage& at, int positives, int negatives, int num_samples,
                                     int64_t* index, bool* valid, bool* positive) {
  const int drawn = positives + negatives;
  uint32_t positives_before = 0, negatives_before = positives;
  for (int start = 0; start < at.n && positives_before + negatives_before < static_cast<uint32_t>(positives) + drawn;
       start += kSampleThreads) {
    const int i = start + threadIdx.x;
    const int group = i < at.n ? at.group[i] : 0;
    const uint32_t mine = group == kTakenPositive ? 1 : group == kTakenNegative ? 1 << 16 : 0;  // two sums in one
    uint32_t total;
    const uint32_t before = block_exclusive_sum<kSampleThreads>(mine, total);
    if (group == kTakenPositive) index[positives_before + (before & 0xffff)] = i;
    if (group == kTakenNegative) index[negatives_before + (before >> 16)] = i;
    positives_before += total & 0xffff;
    negatives_before += total >> 16;
  }
  for (int s = threadIdx.x; s < num_samples; s += kSampleThreads) {
    if (s >= drawn) index[s] = 0;
    valid[s] = s < drawn;
    positive[s] = s < positives;
  }
}

// grid [B], block [kSampleThreads]. target, iou, state [B, n]; seed [1]; index, valid, positive [B, num_samples].
__global__ void __launch_bounds__(kSampleThreads)
    sample_iou_balanced_kernel(const int64_t* __restrict__ target, const float* __restrict__ iou,
                               const int8_t* __restrict__ state, const int64_t* __restrict__ seed, int n,
                               SampleOptions options, SampleWorkspace workspace, int64_t* __restrict__ index,
                               bool* __restrict__ valid, bool* __restrict__ positive) {
  SHARED(SampleShared, shared);
  const int64_t image = blockIdx.x, offset = image * n, out = image * options.num_samples;
  const SampleImage at{workspace.group + offset, workspace.word + offset, n, blockIdx.x, static_cast<uint64_t>(*seed)};
  find_groups(at, iou + offset, state + offset, options, shared);
  SortItem* items = workspace.items ? workspace.items + offset : nullptr;
  const int positives = take_positives(at, target + offset, items, options, shared);
  const int negatives = take_negatives(at, negative_count(positives, options), options, shared);
  write_samples(at, positives, negatives, options.num_samples, index + out, valid + out, positive + out);
}

// images B and candidates N may be 0. The workspace needs no initial content.
inline cudaError_t launch_sample_iou_balanced(const int64_t* target, const float* iou, const int8_t* state,
                                              const int64_t* seed, int64_t images, int64_t candidates,
                                              const SampleOptions& options, const SampleWorkspace& workspace,
                                              int64_t* index, bool* valid, bool* positive, cudaStream_t stream) {
  if (images == 0 || options.num_samples == 0) return cudaSuccess;
  return launch(sample_iou_balanced_kernel, dim3(static_cast<unsigned>(images)), dim3(kSampleThreads), 0, stream,
                target, iou, state, seed, static_cast<int>(candidates), options, workspace, index, valid, positive);
}

}  // namespace libra
