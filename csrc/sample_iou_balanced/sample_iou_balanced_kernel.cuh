// sample_iou_balanced on the GPU; no torch headers. README.md, CUDA: what it costs.
//
// Up to kItems candidates an image: one block reads them once into shared memory and draws there
// (sample_iou_balanced_draw.cuh). More: many blocks an image first sift. count_kernel gives every candidate its group
// and counts the groups of its chunk; with the image's counts, sift_kernel knows how many each group gives, hence a
// bound on the random words of those who can be drawn (all but once in 10^9), and lists the few hundred below it; the
// one block that draws takes the list. Where the list does not do (a draw of very many samples, very many positives
// dealt by target, targets beyond 2^20, that once) the block draws from all candidates in global memory.
#pragma once

#include "sample_iou_balanced/sample_iou_balanced_draw.cuh"

namespace libra {

constexpr int kSiftThreads = 256;
constexpr int kSiftChunk = 2048;        // candidates of a block, at least
constexpr int kMaxSiftChunks = 512;     // of an image
constexpr int kMaxListedSamples = 768;  // so many, and the list fits into shared memory

struct SampleShape {
  int candidates;     // of an image
  int chunk, chunks;  // candidates that a sifting block takes, and its number in an image

  static SampleShape make(int64_t candidates) {
    int64_t chunk = (candidates + kMaxSiftChunks - 1) / kMaxSiftChunks;
    if (chunk < kSiftChunk) chunk = kSiftChunk;
    return {static_cast<int>(candidates), static_cast<int>(chunk), static_cast<int>((candidates + chunk - 1) / chunk)};
  }
};

inline bool sample_sifts(int64_t candidates, const SampleOptions& options) {
  return candidates > kItems && options.num_samples <= kMaxListedSamples;
}

// [B, N] each.
struct SampleTensors {
  const int64_t* target;
  const float* iou;
  const int8_t* state;
  const int64_t* seed;  // [1]
};

// Global memory that the kernels work in, of any content.
struct SampleWorkspace {
  uint8_t* group;   // [B, N]
  uint32_t* word;   // [B, N]
  SortItem* items;  // [B, N] for instance-balanced positives, else null
  // Where sample_sifts, else null:
  float* highest;    // [B, chunks]: for "published" bins
  uint32_t* counts;  // [B, chunks, kMaxGroups]
  uint64_t* list;    // [B, kItems]: candidate << 8 | group
  uint32_t* length;  // [B]: how many belong on the list, even if they do not fit
};

// [B, num_samples] each.
struct SampleOutputs {
  int64_t* index;
  bool *valid, *positive;
};

template <int kThreads>
__device__ __forceinline__ float block_max(float value, float* warps) {
  for (int offset = 16; offset; offset /= 2) {
    const float other = __shfl_xor_sync(kFullWarp, value, offset);
    value = other > value ? other : value;
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  for (int warp = 0; warp < kThreads / 32; ++warp) value = fmaxf(value, warps[warp]);
  return value;
}

// A thread's part of the highest number; a NaN is no number.
template <int kThreads>
__device__ __forceinline__ float highest_of(const float* numbers, int n) {
  float best = -INFINITY;
  for (int i = threadIdx.x; i < n; i += kThreads) best = numbers[i] > best ? numbers[i] : best;
  return best;
}

// Gives n candidates their groups, and counts these; `high` is the highest IoU of the image for "published" bins.
template <int kThreads>
__device__ __forceinline__ void find_groups(const float* iou, const int8_t* state, int n, float high,
                                            const SampleOptions& options, uint8_t* group, float* edges,
                                            uint32_t* count) {
  const double low = options.published ? 0.0 : options.low, top = options.published ? high : options.high;
  const int thread = threadIdx.x;
  if (thread <= options.num_bins) edges[thread] = bin_edge(low, top, options.num_bins, thread);
  if (thread < options.groups()) count[thread] = 0;
  __syncthreads();
  const float first = edges[0], last = edges[options.num_bins];
  for (int start = 0; start < n; start += kThreads) {  // whole warps, for the vote
    const int i = start + thread;
    int mine = -1;
    if (i < n) {
      const float value = iou[i];
      int bin = 0;
      for (int k = 1; k < options.num_bins; ++k) bin += value >= edges[k];
      mine = candidate_group(bin, value, state[i], first, last, options);
      group[i] = static_cast<uint8_t>(mine);
    }
    const unsigned same = __match_any_sync(kFullWarp, mine);  // one atomic for all lanes of a group
    if (mine >= 0 && thread % 32 == __ffs(same) - 1) atomicAdd(&count[mine], static_cast<uint32_t>(__popc(same)));
  }
  __syncthreads();
}

// grid [B chunks], block [kSiftThreads], as for the next two.
__global__ void __launch_bounds__(kSiftThreads)
    highest_kernel(const __grid_constant__ SampleTensors tensors, const __grid_constant__ SampleWorkspace workspace,
                   const __grid_constant__ SampleShape shape) {
  SHARED(float, warps, [kSiftThreads / 32]);
  const int64_t image = blockIdx.x / shape.chunks;
  const int begin = blockIdx.x % shape.chunks * shape.chunk, count = min(shape.candidates - begin, shape.chunk);
  const float mine = highest_of<kSiftThreads>(tensors.iou + image * shape.candidates + begin, count);
  const float highest = block_max<kSiftThreads>(mine, warps);
  if (threadIdx.x == 0) workspace.highest[blockIdx.x] = highest;
}

__global__ void __launch_bounds__(kSiftThreads)
    count_kernel(const __grid_constant__ SampleTensors tensors, const __grid_constant__ SampleWorkspace workspace,
                 const __grid_constant__ SampleShape shape, const __grid_constant__ SampleOptions options) {
  SHARED(uint32_t, count, [kMaxGroups]);
  SHARED(float, edges, [kMaxBins + 1]);
  SHARED(float, warps, [kSiftThreads / 32]);
  const int64_t image = blockIdx.x / shape.chunks;
  const int begin = blockIdx.x % shape.chunks * shape.chunk, n = min(shape.candidates - begin, shape.chunk);
  const int64_t offset = image * shape.candidates + begin;
  float high = 0;
  if (options.published) {
    high = highest_of<kSiftThreads>(workspace.highest + image * shape.chunks, shape.chunks);
    high = block_max<kSiftThreads>(high, warps);
  }
  find_groups<kSiftThreads>(tensors.iou + offset, tensors.state + offset, n, high, options, workspace.group + offset,
                            edges, count);
  if (threadIdx.x < options.groups()) {
    workspace.counts[static_cast<int64_t>(blockIdx.x) * kMaxGroups + threadIdx.x] = count[threadIdx.x];
  }
  if (begin == 0 && threadIdx.x == 0) workspace.length[image] = 0;
}

// The counts of an image's groups, from those of its chunks. Ends with a barrier.
template <int kThreads>
__device__ __forceinline__ void add_counts(const uint32_t* counts, int chunks, int groups, uint32_t* count) {
  for (int group = threadIdx.x / 32; group < groups; group += kThreads / 32) {  // a warp for each
    uint32_t sum = 0;
    for (int chunk = threadIdx.x % 32; chunk < chunks; chunk += 32) sum += counts[chunk * kMaxGroups + group];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) count[group] = sum;
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kSiftThreads)
    sift_kernel(const __grid_constant__ SampleTensors tensors, const __grid_constant__ SampleWorkspace workspace,
                const __grid_constant__ SampleShape shape, const __grid_constant__ SampleOptions options) {
  SHARED(uint32_t, count, [kMaxGroups]);
  // Words below these are listed: of a group's first draw, and of the refill. 0: none; 2^32: all.
  SHARED(uint64_t, first_bound, [kMaxGroups]);
  SHARED(uint64_t, refill_bound, [kMaxGroups]);
  const int64_t image = blockIdx.x / shape.chunks;
  add_counts<kSiftThreads>(workspace.counts + image * shape.chunks * kMaxGroups, shape.chunks, options.groups(), count);
  if (threadIdx.x < options.groups()) {
    const SamplePlan plan(count, options);
    const int group = threadIdx.x, available = static_cast<int>(count[group]);
    const auto bound = [](int take, int of) { return take > 0 ? uint64_t(word_limit(take, of)) + 1 : uint64_t(0); };
    const bool bin = group < options.num_bins, positive = group == options.positives();
    first_bound[group] = bin        ? bound(plan.of_bin(available), available)
                         : positive ? bound(plan.positives, plan.deal ? 1 : available)
                                    : 0;
    refill_bound[group] = group <= options.outside()       ? bound(plan.refill, plan.left)
                          : group == options.last_resort() ? bound(plan.last_refill, available)
                                                           : 0;
  }
  __syncthreads();
  const uint64_t seed = static_cast<uint64_t>(*tensors.seed);
  const int begin = blockIdx.x % shape.chunks * shape.chunk, end = min(begin + shape.chunk, shape.candidates);
  const uint8_t* groups = workspace.group + image * shape.candidates;
  for (int start = begin; start < end; start += kSiftThreads) {  // whole warps append
    const int i = start + threadIdx.x;
    const int group = i < end ? groups[i] : options.ignored();
    bool wanted = false;
    if (first_bound[group] | refill_bound[group]) {
      const PhiloxWords words = philox(i, static_cast<uint32_t>(image), seed);
      const uint32_t first = group == options.positives() ? words.word[kPositiveWord] : words.word[kBinWord];
      wanted = first < first_bound[group] || words.word[kRefillWord] < refill_bound[group];
    }
    const uint32_t at = warp_append(wanted, &workspace.length[image]);
    if (wanted && at < kItems) workspace.list[image * kItems + at] = static_cast<uint64_t>(i) << 8 | group;
  }
}

// Groups and counts of an image of at most kItems candidates, in shared memory.
__device__ __forceinline__ void read_candidates(const float* iou, const int8_t* state, int n,
                                                const SampleOptions& options, SampleShared& shared) {
  float high = 0;
  if (options.published) high = block_max<kSampleThreads>(highest_of<kSampleThreads>(iou, n), shared.warp_max);
  for (int i = threadIdx.x; i < n; i += kSampleThreads) shared.index[i] = i;
  find_groups<kSampleThreads>(iou, state, n, high, options, shared.group, shared.edges, shared.count);
}

// The sifted candidates of an image and its counts, in shared memory. Returns how many, or -1 if they do not fit.
__device__ __forceinline__ int read_list(const SampleWorkspace& workspace, int64_t image, const SampleShape& shape,
                                         const SampleOptions& options, SampleShared& shared) {
  const uint32_t length = workspace.length[image];
  if (length > kItems) return -1;
  const int n = static_cast<int>(length);
  for (int i = threadIdx.x; i < n; i += kSampleThreads) shared.keys[i] = workspace.list[image * kItems + i];
  block_sort<kSampleThreads>(shared.keys, n);
  for (int i = threadIdx.x; i < n; i += kSampleThreads) {
    shared.index[i] = static_cast<uint32_t>(shared.keys[i] >> 8);
    shared.group[i] = static_cast<uint8_t>(shared.keys[i]);
  }
  add_counts<kSampleThreads>(workspace.counts + image * shape.chunks * kMaxGroups, shape.chunks, options.groups(),
                             shared.count);
  return n;
}

// grid [B], block [kSampleThreads].
template <bool kSifted>
__global__ void __launch_bounds__(kSampleThreads)
    sample_kernel(const __grid_constant__ SampleTensors tensors, const __grid_constant__ SampleWorkspace workspace,
                  const __grid_constant__ SampleShape shape, const __grid_constant__ SampleOptions options,
                  const __grid_constant__ SampleOutputs outputs) {
  SHARED(SampleShared, shared);
  const int64_t image = blockIdx.x, offset = image * shape.candidates, out = image * options.num_samples;
  const uint64_t seed = static_cast<uint64_t>(*tensors.seed);
  const int64_t* target = tensors.target + offset;
  const auto draw = [&](const auto& all, bool sifted, auto deal) {
    return draw_samples(all, sifted, deal, options, shared, outputs.index + out, outputs.valid + out,
                        outputs.positive + out);
  };
  int n = shape.candidates <= kItems ? shape.candidates : -1;
  if constexpr (kSifted) {
    n = read_list(workspace, image, shape, options, shared);
  } else if (n >= 0) {
    read_candidates(tensors.iou + offset, tensors.state + offset, n, options, shared);
  }
  if (n >= 0) {
    const Candidates<true> all{shared.group, shared.word, shared.index, n, blockIdx.x, seed};
    if (draw(all, kSifted, [&](int quota, int last_round) {
          return deal_positives(all, target, quota, last_round, options, shared);
        })) {
      return;
    }
    __syncthreads();
  }
  const Candidates<false> all{
      workspace.group + offset, workspace.word + offset, nullptr, shape.candidates, blockIdx.x, seed};
  const float* iou = tensors.iou + offset;
  float high = 0;
  if (options.published) high = block_max<kSampleThreads>(highest_of<kSampleThreads>(iou, all.n), shared.warp_max);
  find_groups<kSampleThreads>(iou, tensors.state + offset, all.n, high, options, all.group, shared.edges, shared.count);
  draw(all, false, [&](int quota, int last_round) {
    return deal_positives(all, target, workspace.items + offset, quota, last_round, options, shared);
  });
}

// images B and candidates N may be 0.
inline cudaError_t launch_sample_iou_balanced(const SampleTensors& tensors, int64_t images, int64_t candidates,
                                              const SampleOptions& options, const SampleWorkspace& workspace,
                                              const SampleOutputs& outputs, cudaStream_t stream) {
  if (images == 0 || options.num_samples == 0) return cudaSuccess;
  const SampleShape shape = SampleShape::make(candidates);
  const dim3 grid(static_cast<unsigned>(images)), block(kSampleThreads);
  if (!sample_sifts(candidates, options)) {
    return launch(sample_kernel<false>, grid, block, 0, stream, tensors, workspace, shape, options, outputs);
  }
  const int64_t blocks = images * shape.chunks;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const dim3 sift_grid(static_cast<unsigned>(blocks)), sift_block(kSiftThreads);
  cudaError_t error = cudaSuccess;
  if (options.published) error = launch(highest_kernel, sift_grid, sift_block, 0, stream, tensors, workspace, shape);
  if (error == cudaSuccess) {
    error = launch(count_kernel, sift_grid, sift_block, 0, stream, tensors, workspace, shape, options);
  }
  if (error == cudaSuccess) {
    error = launch(sift_kernel, sift_grid, sift_block, 0, stream, tensors, workspace, shape, options);
  }
  if (error != cudaSuccess) return error;
  return launch(sample_kernel<true>, grid, block, 0, stream, tensors, workspace, shape, options, outputs);
}

}  // namespace libra
