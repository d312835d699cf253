// match_boxes on the GPU, without a candidates x targets matrix; no torch headers. README.md, CUDA: what it costs.
//
// match_kernel: a block takes a chunk of an image's boxes, a tile at a time, with one or four boxes in each thread's
// registers, and walks over the targets, which are staged in shared memory, 128 at a time. A warp of four boxes a lane
// knows the hull of its 128 boxes and visits only the targets that overlap it. A visit looks for pairs that may beat
// the box's best, or, for the low-quality rule, the target's best within the tile (match_boxes_screen.cuh); only those
// are compared with care. Then the block writes what its boxes reached for each target.
//
// claim_kernel: a target claims every box that ties with its best. A block looks at its chunk again only for the
// targets that no other chunk has a better box for; they are taken in order by the thread that owns the box, so the
// later one wins.
//
// Odd pairs, with coordinates beyond 2^20 px, below 2^-20 px, or a target next to nothing in area, go through the
// formula itself in a pass of their own after the tile (match_odd), so that the hot loop holds none of it.
#pragma once

#include "match_boxes/match_boxes_screen.cuh"
#include "match_boxes/match_boxes_shape.cuh"

namespace libra {

struct __align__(16) StagedTarget {
  Box<float> box;  // scaled; nowhere() for a target that cannot be found, or is odd
  float area;
  // Between barriers only atomics touch these. Neither is negative, so their bits order as integers do.
  unsigned top;  // bits of the best IoU that any box of the tile has with it
  unsigned low;  // bits of ratio_below() of that IoU, or meanwhile of an earlier one

  __device__ __forceinline__ void begin(const Box<float>& scaled_box, unsigned least) {
    box = scaled_box, area = libra::area(scaled_box);
    top = least, low = __float_as_uint(ratio_below(__uint_as_float(least)));
  }

  __device__ __forceinline__ void raise(float iou) {
    atomicMax(&top, __float_as_uint(iou));
    atomicMax(&low, __float_as_uint(ratio_below(iou)));
  }

  __device__ __forceinline__ float low_by_now() { return __uint_as_float(atomicOr(&low, 0u)); }
};

// Bits that an IoU has to pass to be a target's best: those just below min_positive_iou, or of 0.
__device__ __forceinline__ unsigned least_top(const MatchRules& rules) {
  return rules.min_positive_iou > 0 ? __float_as_uint(rules.min_positive_iou) - 1 : 0u;
}

// The lane's boxes that no crowd region holds, a bit for each. odd: whether a region is not plain, which all warps of
// the image see alike; the bits are not to be used then.
template <int kBoxes>
__device__ __forceinline__ unsigned outside_crowds(const Candidate (&mine)[kBoxes], const Box<float>* crowd, int n,
                                                   const Box<float>& hull, bool& odd) {
  constexpr float kLeastArea = static_cast<float>(kSmallestArea) * kScaleX;
  const int lane = threadIdx.x % 32;
  unsigned outside = (1u << kBoxes) - 1;
  for (int start = 0; start < n; start += 32) {
    const Box<float> region = start + lane < n ? load_box(crowd + start + lane) : nowhere();
    const bool real = is_real(region, true), plain = is_screenable(region);
    odd = odd || (real && !plain);
    const bool near = real && plain && (kBoxes == 1 || overlaps(hull, scaled(region)));
    for (unsigned rest = __ballot_sync(kFullWarp, near); rest; rest &= rest - 1) {
      const Box<float> one = scaled(load_box(crowd + start + __ffs(rest) - 1));
#pragma unroll
      for (int k = 0; k < kBoxes; ++k) {
        // The quotient rounds to more than a half exactly where the intersection is more than half of the divisor.
        const bool inside = scaled_intersection(mine[k].box, one) > kCrowdShare * fmaxf(mine[k].area, kLeastArea);
        if (inside) outside &= ~(1u << k);
      }
    }
  }
  odd = __any_sync(kFullWarp, odd);
  return outside;
}

// The part's odd pairs, on top of what was written for the others. all: every pair is odd.
__device__ __forceinline__ void match_odd(const MatchTensors& tensors, const MatchShape& shape, const MatchRules& rules,
                                          const MatchPart& part, bool any_target, bool all) {
  const int64_t first_target = part.image * static_cast<int64_t>(shape.targets);
  const Box<float>* crowd = tensors.crowd + part.image * static_cast<int64_t>(shape.crowd);
  for (int i = threadIdx.x; i < part.count; i += kMatchThreads) {
    const Box<float> box = load_box(part.boxes + i);
    if (!is_finite(box)) continue;
    const bool kept = !in_crowd(box, crowd, shape.crowd), plain = !all && is_screenable(box);
    float best = tensors.iou[part.out + i];
    int arg = static_cast<int>(tensors.index[part.out + i]);
#pragma unroll 1
    for (int g = 0; g < shape.targets; ++g) {
      const Box<float> target = load_box(tensors.targets + first_target + g);
      if (!is_real(target, tensors.valid[first_target + g]) || (plain && is_screenable_target(target))) continue;
      const float value = any_iou(box, target);
      if (value > best || (value == best && value > 0 && g < arg)) best = value, arg = g;
      const unsigned bits = __float_as_uint(value);
      if (rules.low_quality && kept && bits > least_top(rules)) {
        atomicMax(top_of(tensors, shape, part.image, g, part.chunk), bits);
      }
    }
    tensors.index[part.out + i] = arg;
    tensors.iou[part.out + i] = best;
    tensors.state[part.out + i] = kept ? state_of(best, any_target, rules) : kIgnored;
  }
}

// grid [B chunks], block [kMatchThreads].
template <int kBoxes, bool kLowQuality>
__global__ void __launch_bounds__(kMatchThreads, kBoxes > 1 ? 5 : 8)
    match_kernel(const __grid_constant__ MatchTensors tensors, const __grid_constant__ MatchShape shape,
                 const __grid_constant__ MatchRules rules) {
  constexpr bool kHull = kBoxes > 1;
  struct Shared {
    StagedTarget staged[kStage];
    float lows[kLowQuality && !kHull ? kMatchThreads / 32 : 1][32];  // of each warp: bounds of the targets it is at
  };
  SHARED(Shared, shared);
  StagedTarget* const staged = shared.staged;
  float* const lows = shared.lows[kLowQuality && !kHull ? threadIdx.x / 32 : 0];
  constexpr int kTile = kBoxes * kMatchThreads;
  const int thread = threadIdx.x, lane = thread % 32;
  const int image = blockIdx.x / shape.chunks, chunk = blockIdx.x % shape.chunks;
  const int place = thread / 32 * 32 * kBoxes + lane;  // of the first box in the tile; a warp's boxes are neighbours
  bool reached = false;
  for (int tile = 0; tile < shape.tiles_per_chunk; ++tile) {
    const int64_t begin = (static_cast<int64_t>(chunk) * shape.tiles_per_chunk + tile) * kTile;
    if (begin >= shape.boxes) break;
    const MatchPart part(tensors, shape, image, chunk, begin, kTile);
    Box<float> target = nowhere();
    bool valid = false;
    const auto load_target = [&](int number) {
      if (number >= shape.targets) return;
      const int64_t at = image * static_cast<int64_t>(shape.targets) + number;
      target = load_box(tensors.targets + at), valid = tensors.valid[at];
    };
    if (!kHull) load_target(thread);  // in small problems time is waiting: ask before the boxes are waited for
    Candidate mine[kBoxes];
    Box<float> hull = nowhere();
    unsigned keep = 0;
    bool odd = false, odd_crowd = false, any_target = false;
#pragma unroll
    for (int k = 0; k < kBoxes; ++k) {
      Box<float> box{0, 0, 0, 0};
      if (place + k * 32 < part.count) box = load_box(part.boxes + place + k * 32);
      const bool finite = is_finite(box), plain = is_screenable(box);
      keep |= static_cast<unsigned>(finite) << k;
      odd = odd || (finite && !plain);
      mine[k].begin(plain ? scaled(box) : Box<float>{0, 0, 0, 0});
      if (mine[k].area > 0) hull = around(hull, mine[k].box);
    }
    if (kHull) hull = warp_hull(hull);
    if (shape.crowd) {
      const Box<float>* crowd = tensors.crowd + image * static_cast<int64_t>(shape.crowd);
      keep &= outside_crowds(mine, crowd, shape.crowd, hull, odd_crowd);
      if (odd_crowd) {
        odd = true;
#pragma unroll
        for (int k = 0; k < kBoxes; ++k) mine[k].begin({0, 0, 0, 0});
      }
    }

    // The pairs of the lane's boxes and a staged target. target_low: its bound, of a moment ago.
    const auto visit = [&](StagedTarget& other, int number, float target_low) {
      const Box<float> target_box = load_box(&other.box);
      const float target_area = other.area;
      float found[kBoxes];
      bool closer[kBoxes], any = false;
#pragma unroll
      for (int k = 0; k < kBoxes; ++k) {
        found[k] = scaled_intersection(mine[k].box, target_box);
        const float bound = kLowQuality ? fminf(mine[k].low, target_low) * (mine[k].area + target_area)
                                        : __fmaf_rn(mine[k].low, target_area, mine[k].low_area);
        closer[k] = found[k] > bound;
        any = any || closer[k];
      }
      if (!any) return;
      float reached_iou = 0;
#pragma unroll
      for (int k = 0; k < kBoxes; ++k) {
        if (!closer[k]) continue;
        const float sum = mine[k].area + target_area;
        if (!kLowQuality || found[k] > mine[k].low * sum) mine[k].compare(found[k], target_area, number);
        if (kLowQuality && found[k] > target_low * sum && keep >> k & 1) {
          reached_iou = fmaxf(reached_iou, found[k] / (sum - found[k]));
        }
      }
      if (kLowQuality && reached_iou > 0) other.raise(reached_iou);
    };

    for (int start = 0; start < shape.targets; start += kStage) {
      const int count = min(shape.targets - start, kStage);
      if (kHull || start > 0) load_target(start + thread);
      const bool real = thread < count && is_real(target, valid), plain = is_screenable_target(target);
      odd = odd || (real && !plain);
      if (thread < count) staged[thread].begin(real && plain ? scaled(target) : nowhere(), least_top(rules));
      any_target |= __syncthreads_or(real);
      for (int group = 0; group < count; group += 32) {
        const int size = min(count - group, 32);
        StagedTarget* const others = staged + group;
        bool near = lane < size;
        if (kHull) near = near && overlaps(hull, load_box(&others[lane].box));
        // A lane asks for one target's bound: as a warp sees a target once, only other warps can raise it meanwhile.
        const float low = kLowQuality && near ? others[lane].low_by_now() : 0.0f;
        if constexpr (kHull) {
          for (unsigned rest = __ballot_sync(kFullWarp, near); rest; rest &= rest - 1) {
            const int j = __ffs(rest) - 1;
            visit(others[j], start + group + j, kLowQuality ? __shfl_sync(kFullWarp, low, j) : 0.0f);
          }
        } else {
          if (kLowQuality) {
            __syncwarp();  // the bounds of the group before have been read
            lows[lane] = low;
            __syncwarp();
          }
#pragma unroll 4
          for (int j = 0; j < size; ++j) visit(others[j], start + group + j, kLowQuality ? lows[j] : 0.0f);
        }
      }
      if (kLowQuality || start + kStage < shape.targets) __syncthreads();  // the stage has been read
      if (kLowQuality && thread < count) {
        unsigned* out = top_of(tensors, shape, image, start + thread, chunk);
        const unsigned top = staged[thread].top > least_top(rules) ? staged[thread].top : 0u;
        *out = tile > 0 ? max(*out, top) : top;
        reached = reached || top != 0;
      }
    }
#pragma unroll
    for (int k = 0; k < kBoxes; ++k) {
      if (place + k * 32 >= part.count) continue;
      const int64_t out = part.out + place + k * 32;
      const float iou = mine[k].iou();
      tensors.index[out] = mine[k].target;
      tensors.iou[out] = iou;
      tensors.state[out] = keep >> k & 1 ? state_of(iou, any_target, rules) : kIgnored;
    }
    if (__syncthreads_or(odd)) {  // and the last stage has been read
      match_odd(tensors, shape, rules, part, any_target, odd_crowd);
      reached = true;  // maybe
      __syncthreads();
    }
  }
  if (kLowQuality) {
    reached = __syncthreads_or(reached);
    if (thread == 0) *top_of(tensors, shape, image, shape.targets, chunk) = reached;
  }
}

// grid and block as above.
__global__ void __launch_bounds__(kMatchThreads)
    claim_kernel(const __grid_constant__ MatchTensors tensors, const __grid_constant__ MatchShape shape,
                 const __grid_constant__ MatchRules rules) {
  SHARED(unsigned, claims_of_warp, [kStage / 32]);  // a bit for each staged target whose best is in this chunk
  SHARED(unsigned, tops, [kStage]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int image = blockIdx.x / shape.chunks, chunk = blockIdx.x % shape.chunks;
  if (*top_of(tensors, shape, image, shape.targets, chunk) == 0) return;
  const int most = shape.tiles_per_chunk * shape.boxes_per_thread * kMatchThreads;
  const MatchPart part(tensors, shape, image, chunk, static_cast<int64_t>(chunk) * most, most);
  const Box<float>* targets = tensors.targets + image * static_cast<int64_t>(shape.targets);
  const Box<float>* crowd = tensors.crowd + image * static_cast<int64_t>(shape.crowd);
  for (int start = 0; start < shape.targets; start += kStage) {
    const int g = start + threadIdx.x;
    const unsigned own = g < shape.targets ? *top_of(tensors, shape, image, g, chunk) : 0u;
    tops[threadIdx.x] = own;
    unsigned claims = 0;
    for (unsigned rest = __ballot_sync(kFullWarp, own != 0); rest; rest &= rest - 1) {
      const int source = __ffs(rest) - 1;
      const unsigned* row = top_of(tensors, shape, image, start + warp * 32 + source, 0);
      const unsigned top = __shfl_sync(kFullWarp, own, source);
      bool best = true;
      for (int other = 0; best && other < shape.chunks; other += 32) {
        best = __all_sync(kFullWarp, other + lane >= shape.chunks || row[other + lane] <= top);
      }
      if (best) claims |= 1u << source;
    }
    if (lane == 0) claims_of_warp[warp] = claims;
    if (__syncthreads_or(claims != 0)) {
      for (int of = 0; of < kStage / 32; ++of) {
        for (unsigned rest = claims_of_warp[of]; rest; rest &= rest - 1) {
          const int j = of * 32 + __ffs(rest) - 1;
          const float top = __uint_as_float(tops[j]);
          const Box<float> target = load_box(targets + start + j);
#pragma unroll 1
          for (int i = threadIdx.x; i < part.count; i += kMatchThreads) {
            const Box<float> box = load_box(part.boxes + i);
            if (any_iou(box, target) != top || in_crowd(box, crowd, shape.crowd)) continue;
            tensors.index[part.out + i] = start + j;
            tensors.state[part.out + i] = kPositive;
          }
        }
      }
    }
    __syncthreads();  // the stage has been read
  }
}

// tops: [shape.tops()] of any content for the low-quality rule, else null. crowd may be null; boxes 16-byte aligned.
inline cudaError_t launch_match_boxes(const MatchTensors& tensors, const MatchShape& shape, const MatchRules& rules,
                                      cudaStream_t stream) {
  if (shape.batch == 0 || shape.boxes == 0) return cudaSuccess;
  const int64_t blocks = shape.batch * shape.chunks;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const dim3 grid(static_cast<unsigned>(blocks)), block(kMatchThreads);
  const bool many = shape.boxes_per_thread == kManyBoxes, claim = rules.low_quality && shape.targets > 0;
  const auto kernel = claim  ? many ? match_kernel<kManyBoxes, true> : match_kernel<1, true>
                      : many ? match_kernel<kManyBoxes, false>
                             : match_kernel<1, false>;
  const cudaError_t error = launch(kernel, grid, block, 0, stream, tensors, shape, rules);
  if (error != cudaSuccess || !claim) return error;
  return launch(claim_kernel, grid, block, 0, stream, tensors, shape, rules);
}

}  // namespace libra
