// topk_per_level on the GPU; no torch headers. README.md, CUDA: what it costs.
//
// A group is one level of one image; several blocks share its scores. A candidate is a 64-bit number that ascends from
// the best to the worst (topk_per_level_math.h), and all differ, so the k best are those up to some limit. A radix
// select finds one below which there are at least k candidates, and no more than fit on the group's list: each pass of
// count_kernel counts one digit of the candidates that the passes before left open. What a pass found is read from its
// counters by every block of the next one, so no block waits for another. Most groups are settled after a pass or two;
// the others are launched all the same, and return at once. Then collect_kernel lists the candidates up to the limit,
// and one block a group sorts the list. Atomics only count and append to what is sorted: the order of threads does not
// matter. A group whose scores all fit on its list is closed: it needs no pass, no counters and no state.
//
// With a threshold the first pass of an open group lists what is above it, too: where that fits, it is the only pass.
#pragma once

#include "common/block_scan.cuh"
#include "common/block_sort.cuh"
#include "topk_per_level/topk_per_level_math.h"

namespace libra {

constexpr int kCountThreads = 256;
constexpr int kSortThreads = 1024;
constexpr int kDigitBits = 11;
constexpr int kBuckets = 1 << kDigitBits;
constexpr int kPasses = (64 + kDigitBits - 1) / kDigitBits;
constexpr int64_t kChunk = 8192;     // scores of a block, at least
constexpr int64_t kMaxChunks = 256;  // of a group
constexpr uint32_t kListed = 4096;   // candidates that are sorted in shared memory

// How the work is laid out.
struct TopkPlan {
  Levels levels;
  uint32_t lowest;  // key that a candidate has at least: above 0 with a threshold
  int open_levels;
  int open[kMaxLevels];                // which of the open levels; -1 of one that is closed
  uint32_t capacity[kMaxLevels];       // of a group's list
  int64_t first_list[kMaxLevels + 1];  // of an image's lists, in candidates
  int64_t chunk[kMaxLevels];
  int64_t first_chunk[kMaxLevels + 1];  // of an image's chunks

  static TopkPlan make(const Levels& levels, uint32_t lowest) {
    TopkPlan plan{};
    plan.levels = levels, plan.lowest = lowest;
    for (int level = 0; level < levels.count; ++level) {
      const int64_t n = levels.size(level), take = levels.take(level);
      const int64_t enough = take + take / 2 > int64_t(kListed) ? take + take / 2 : int64_t(kListed);
      plan.capacity[level] = static_cast<uint32_t>(take == 0 ? 0 : n < enough ? n : enough);
      plan.first_list[level + 1] = plan.first_list[level] + plan.capacity[level];
      plan.open[level] = take > 0 && n > enough ? plan.open_levels++ : -1;
      plan.chunk[level] = (n + kMaxChunks - 1) / kMaxChunks > kChunk ? (n + kMaxChunks - 1) / kMaxChunks : kChunk;
      const int64_t chunks = take > 0 ? (n + plan.chunk[level] - 1) / plan.chunk[level] : 0;
      plan.first_chunk[level + 1] = plan.first_chunk[level] + chunks;
    }
    return plan;
  }

  // Of one image.
  LIBRA_HOST_DEVICE int64_t chunks() const { return first_chunk[levels.count]; }
  LIBRA_HOST_DEVICE int64_t listed() const { return first_list[levels.count]; }
  // Whether the first pass over a level makes its list.
  LIBRA_HOST_DEVICE bool sifts(int level) const { return lowest > 0 && open[level] >= 0; }

  // Of the largest launch.
  int64_t blocks(int64_t images) const {
    if (chunks() == 0) return 0;
    const int64_t most = images * (chunks() > levels.count ? chunks() : levels.count), clear = clear_blocks(images);
    return most > clear ? most : clear;
  }
  int64_t clear_blocks(int64_t images) const {
    const int64_t counters = kPasses * images * open_levels * kBuckets, lengths = 2 * images * levels.count;
    return ((counters > lengths ? counters : lengths) + kCountThreads - 1) / kCountThreads;
  }
};

// What the passes know of a group: its candidates up to `limit` hold the best ones; `before` of them are among these
// for certain, and the others have the digits of the limit in common. settled: they fit on the list.
struct TopkState {
  uint64_t limit;
  uint32_t before, settled;
};

// Global memory that the kernels work in, of any content. G groups: images times levels; O of them are open.
struct TopkWorkspace {
  uint32_t* counters;  // [kPasses, O, kBuckets]
  TopkState* states;   // [kPasses + 1, O]: before each pass, and after the last
  uint64_t* list;      // [images, listed()]
  uint32_t* lengths;   // [2, G]: what belongs on the list, even if it does not fit: of the first pass, and in the end
};

// A block's part: scores begin .. end - 1 of a level of an image.
struct TopkChunk {
  int64_t image, group, open, begin, end;  // open: which of the open groups, if it is one
  int level;
  bool first;
};

__device__ __forceinline__ TopkChunk find_chunk(const TopkPlan& plan) {
  const uint32_t chunks = static_cast<uint32_t>(plan.chunks()), image = blockIdx.x / chunks;
  const int64_t chunk = blockIdx.x % chunks;
  int level = 0;
  while (chunk >= plan.first_chunk[level + 1]) ++level;
  const int64_t n = plan.levels.size(level), begin = (chunk - plan.first_chunk[level]) * plan.chunk[level];
  const int64_t end = begin + plan.chunk[level];
  return {image,
          int64_t(image) * plan.levels.count + level,
          int64_t(image) * plan.open_levels + plan.open[level],
          begin,
          end < n ? end : n,
          level,
          begin == 0};
}

// grid: one block for each kCountThreads words of the counters and lengths.
__global__ void __launch_bounds__(kCountThreads)
    clear_kernel(uint32_t* counters, int64_t counter_words, uint32_t* lengths, int64_t length_words) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kCountThreads + threadIdx.x;
  if (i < counter_words) counters[i] = 0;
  if (i < length_words) lengths[i] = 0;
}

__device__ __forceinline__ TopkState first_state(const TopkPlan& plan, int level) {
  return {candidate_of(plan.lowest, ~0u), 0, plan.open[level] < 0};
}

// What is known of a group before `pass`, from the state before the last one and what that counted. Every thread of the
// block calls it, and all get it; the block of the group's first chunk stores it for later. open_groups: how many.
__device__ __forceinline__ TopkState find_state(const TopkPlan& plan, const TopkWorkspace& workspace,
                                                const TopkChunk& chunk, int64_t open_groups, int pass) {
  SHARED(TopkState, shared);
  const int thread = threadIdx.x;
  if (pass == 0 || plan.open[chunk.level] < 0) return first_state(plan, chunk.level);
  const TopkState last =
      pass == 1 ? first_state(plan, chunk.level) : workspace.states[(pass - 1) * open_groups + chunk.open];
  const uint32_t capacity = plan.capacity[chunk.level];
  const bool listed = pass == 1 && plan.lowest > 0 && workspace.lengths[chunk.group] <= capacity;  // by the first pass
  if (last.settled || listed) {
    const TopkState state{last.limit, last.before, 1};
    if (chunk.first && thread == 0) workspace.states[pass * open_groups + chunk.open] = state;
    return state;
  }
  const int top = 64 - (pass - 1) * kDigitBits, shift = top > kDigitBits ? top - kDigitBits : 0;
  constexpr int kEach = kBuckets / kCountThreads;  // consecutive buckets of a thread
  const uint32_t* mine = workspace.counters + ((pass - 1) * open_groups + chunk.open) * kBuckets + thread * kEach;
  uint32_t counts[kEach], sum = 0;
#pragma unroll
  for (int b = 0; b < kEach; ++b) {
    counts[b] = mine[b];
    sum += counts[b];
  }
  uint32_t total;
  uint32_t before = block_exclusive_sum<kCountThreads>(sum, total);
  const uint32_t wanted = static_cast<uint32_t>(plan.levels.take(chunk.level)) - last.before;
  if (thread == 0 && total < wanted) shared = {last.limit, last.before, 1};  // fewer than are wanted: all of them
#pragma unroll
  for (int b = 0; b < kEach; ++b) {
    if (before < wanted && wanted - before <= counts[b]) {  // in one thread, once
      const uint64_t known = top < 64 ? last.limit >> top << top : 0;
      const uint64_t limit = known | static_cast<uint64_t>(thread * kEach + b) << shift | ((uint64_t(1) << shift) - 1);
      const bool fits = uint64_t(last.before) + before + counts[b] <= capacity;
      shared = {limit < last.limit ? limit : last.limit, last.before + before, fits};
    }
    before += counts[b];
  }
  __syncthreads();
  const TopkState state = shared;
  if (chunk.first && thread == 0) workspace.states[pass * open_groups + chunk.open] = state;
  return state;
}

// f(candidate, there) for the scores of a chunk; whole warps call it, and `there` is false beyond the end.
template <class F, class Function>
__device__ __forceinline__ void for_candidates(const typename F::Bits* level, const TopkChunk& chunk,
                                               const Function& f) {
  constexpr int kUnroll = 4;  // loads under way
  for (int64_t start = chunk.begin; start < chunk.end; start += kUnroll * kCountThreads) {
    typename F::Bits score[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = start + u * kCountThreads + threadIdx.x;
      score[u] = i < chunk.end ? level[i] : 0;
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = start + u * kCountThreads + threadIdx.x;
      f(candidate_of(key_of<F>(score[u]), static_cast<uint32_t>(i)), i < chunk.end);
    }
  }
}

template <class F>
__global__ void __launch_bounds__(kCountThreads, 1)
    count_kernel(const typename F::Bits* scores, const __grid_constant__ TopkPlan plan,
                 const __grid_constant__ TopkWorkspace workspace, int64_t open_groups, int pass) {
  SHARED(uint32_t, counters, [kBuckets]);
  const TopkChunk chunk = find_chunk(plan);
  const TopkState state = find_state(plan, workspace, chunk, open_groups, pass);
  if (state.settled) return;
  for (int b = threadIdx.x; b < kBuckets; b += kCountThreads) counters[b] = 0;
  __syncthreads();
  const int64_t num_scores = plan.levels.first[plan.levels.count];
  const int top = 64 - pass * kDigitBits, shift = top > kDigitBits ? top - kDigitBits : 0;
  const bool sifts = plan.lowest > 0 && pass == 0;
  const uint32_t capacity = plan.capacity[chunk.level];
  uint32_t* length = workspace.lengths + chunk.group;
  uint64_t* list = workspace.list + chunk.image * plan.listed() + plan.first_list[chunk.level];
  for_candidates<F>(
      scores + chunk.image * num_scores + plan.levels.first[chunk.level], chunk, [&](uint64_t candidate, bool there) {
        const bool open = there && candidate <= state.limit && (top == 64 || candidate >> top == state.limit >> top);
        if (open) {
          const uint64_t digit = candidate >> shift & ((uint64_t(1) << (top - shift)) - 1);
          atomicAdd(&counters[digit], 1u);
        }
        if (sifts) {
          const uint32_t at = warp_append(open, length);
          if (open && at < capacity) list[at] = candidate;
        }
      });
  __syncthreads();
  uint32_t* sums = workspace.counters + (pass * open_groups + chunk.open) * kBuckets;
  for (int b = threadIdx.x; b < kBuckets; b += kCountThreads) {
    if (counters[b]) atomicAdd(&sums[b], counters[b]);
  }
}

template <class F>
__global__ void __launch_bounds__(kCountThreads, 1)
    collect_kernel(const typename F::Bits* scores, const __grid_constant__ TopkPlan plan,
                   const __grid_constant__ TopkWorkspace workspace, int64_t groups, int64_t open_groups) {
  const TopkChunk chunk = find_chunk(plan);
  if (plan.sifts(chunk.level) && workspace.lengths[chunk.group] <= plan.capacity[chunk.level]) return;  // it is there
  const uint64_t limit = find_state(plan, workspace, chunk, open_groups, kPasses).limit;
  const int64_t num_scores = plan.levels.first[plan.levels.count];
  uint32_t* length = workspace.lengths + groups + chunk.group;
  uint64_t* list = workspace.list + chunk.image * plan.listed() + plan.first_list[chunk.level];
  for_candidates<F>(scores + chunk.image * num_scores + plan.levels.first[chunk.level], chunk,
                    [&](uint64_t candidate, bool there) {
                      const bool wanted = there && candidate <= limit;
                      const uint32_t at = warp_append(wanted, length);
                      if (wanted) list[at] = candidate;
                    });
}

// grid [G].
template <class F>
__global__ void __launch_bounds__(kSortThreads)
    sort_kernel(const typename F::Bits* scores, const __grid_constant__ TopkPlan plan,
                const __grid_constant__ TopkWorkspace workspace, int64_t groups, typename F::Bits* values,
                int64_t* index) {
  SHARED(uint64_t, sorted, [kListed]);
  const uint32_t levels = static_cast<uint32_t>(plan.levels.count);
  const int64_t group = blockIdx.x, image = blockIdx.x / levels;
  const int level = static_cast<int>(blockIdx.x % levels);
  const int64_t take = plan.levels.take(level), first = plan.levels.first[level];
  if (take == 0) return;
  const uint32_t sifted = plan.sifts(level) ? workspace.lengths[group] : ~0u;
  const uint32_t length = sifted <= plan.capacity[level] ? sifted : workspace.lengths[groups + group];
  uint64_t* list = workspace.list + image * plan.listed() + plan.first_list[level];
  const bool fits = length <= kListed;
  if (fits) {
    for (uint32_t i = threadIdx.x; i < length; i += kSortThreads) sorted[i] = list[i];
    block_sort<kSortThreads>(sorted, length);
  } else {
    block_sort<kSortThreads>(list, length);
  }
  const typename F::Bits* own = scores + image * plan.levels.first[plan.levels.count] + first;
  const int64_t out = image * plan.levels.slot[plan.levels.count] + plan.levels.slot[level];
  for (int64_t slot = threadIdx.x; slot < take; slot += kSortThreads) {
    const bool there = slot < int64_t(length);
    const uint32_t position = there ? position_in(fits ? sorted[slot] : list[slot]) : 0;
    values[out + slot] = there ? own[position] : kMinusInfinity<F>;
    index[out + slot] = first + position;
  }
}

// scores [images, N]; values, index [images, T]. images, N and T may be 0.
template <class F>
cudaError_t launch_topk_per_level(const typename F::Bits* scores, int64_t images, const TopkPlan& plan,
                                  const TopkWorkspace& workspace, typename F::Bits* values, int64_t* index,
                                  cudaStream_t stream) {
  const int64_t groups = images * plan.levels.count, open_groups = images * plan.open_levels;
  const int64_t blocks = plan.blocks(images);
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const dim3 grid(static_cast<unsigned>(images * plan.chunks())), block(kCountThreads);
  cudaError_t error = launch(clear_kernel, dim3(static_cast<unsigned>(plan.clear_blocks(images))), block, 0, stream,
                             workspace.counters, kPasses * open_groups * kBuckets, workspace.lengths, 2 * groups);
  for (int pass = 0; pass < kPasses && open_groups > 0 && error == cudaSuccess; ++pass) {
    error = launch(count_kernel<F>, grid, block, 0, stream, scores, plan, workspace, open_groups, pass);
  }
  if (error == cudaSuccess) {
    error = launch(collect_kernel<F>, grid, block, 0, stream, scores, plan, workspace, groups, open_groups);
  }
  if (error != cudaSuccess) return error;
  return launch(sort_kernel<F>, dim3(static_cast<unsigned>(groups)), dim3(kSortThreads), 0, stream, scores, plan,
                workspace, groups, values, index);
}

}  // namespace libra
