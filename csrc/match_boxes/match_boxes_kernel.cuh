// match_boxes on the GPU, without a candidates x targets matrix; no torch headers.
//
// match_kernel: a block takes a chunk of an image's boxes, a tile of 512 at a time with two boxes in each thread's
// registers, and walks over the targets, which are staged in shared memory. Each thread keeps its boxes' best targets;
// for the low-quality rule a warp's best IoU with the target raises the chunk's maximum, an atomic maximum of bits (IoU
// is not negative, so its bits order as integers do) in tops [B, chunks, G]. claim_kernel: a target claims every box
// that ties with its best. A block looks at its chunk again only for the targets whose maximum the chunk reaches.
// Targets are taken in order by the thread that owns the box, so the later one wins.
#pragma once

#include "common/block_reduce.cuh"
#include "match_boxes/match_boxes_math.h"

namespace libra {

constexpr int kMatchThreads = 256;
constexpr int kBoxesPerThread = 2;
constexpr int kMatchTile = kMatchThreads * kBoxesPerThread;
constexpr int kStage = 128;  // targets in shared memory at a time
constexpr int64_t kMaxMatchChunks = 256;
constexpr signed char kInCrowd = -2;  // between the kernels: ignored, and not to be claimed

struct MatchShape {
  int64_t batch, boxes, targets, crowd;  // per image, except the first
  int64_t tiles_per_chunk, chunks;
  bool shared_boxes;

  static MatchShape make(int64_t batch, int64_t boxes, int64_t targets, int64_t crowd, bool shared_boxes) {
    const int64_t tiles = (boxes + kMatchTile - 1) / kMatchTile;
    const int64_t per_chunk = tiles > kMaxMatchChunks ? (tiles + kMaxMatchChunks - 1) / kMaxMatchChunks : 1;
    return {batch, boxes, targets, crowd, per_chunk, (tiles + per_chunk - 1) / per_chunk, shared_boxes};
  }
};

struct StagedTarget {
  Box<float> box;
  float area;
};

__device__ __forceinline__ unsigned warp_max(unsigned value) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kFullWarp, value);
#else
  for (int offset = 16; offset; offset >>= 1) {
    const unsigned other = __shfl_xor_sync(kFullWarp, value, offset);
    value = other > value ? other : value;
  }
  return value;
#endif
}

// grid [chunks, min(B, 65535)], block [kMatchThreads].
__global__ void __launch_bounds__(kMatchThreads)
    match_kernel(const Box<float>* __restrict__ boxes, const Box<float>* __restrict__ targets,
                 const bool* __restrict__ valid, const Box<float>* __restrict__ crowd, int64_t* __restrict__ index,
                 float* __restrict__ iou_out, signed char* __restrict__ state, unsigned* __restrict__ tops,
                 MatchShape shape, MatchRules rules) {
  SHARED(StagedTarget, staged, [kStage]);
  SHARED(unsigned char, staged_flags, [kStage]);  // bit 0: a real target; bit 1: huge
  for (int64_t b = blockIdx.y; b < shape.batch; b += gridDim.y) {
    const Box<float>* image_boxes = boxes + (shape.shared_boxes ? 0 : b * shape.boxes);
    unsigned* chunk_tops = tops + (b * shape.chunks + blockIdx.x) * shape.targets;
    const int64_t first_tile = blockIdx.x * shape.tiles_per_chunk;
    for (int64_t tile = first_tile; tile < first_tile + shape.tiles_per_chunk; ++tile) {
      if (tile * kMatchTile >= shape.boxes) break;
      Box<float> box[kBoxesPerThread];
      float box_area[kBoxesPerThread], best[kBoxesPerThread];
      int64_t at[kBoxesPerThread];
      int arg[kBoxesPerThread];
      bool huge[kBoxesPerThread], keep[kBoxesPerThread], any_target = false;
#pragma unroll
      for (int k = 0; k < kBoxesPerThread; ++k) {
        at[k] = tile * kMatchTile + k * kMatchThreads + threadIdx.x;
        box[k] = at[k] < shape.boxes ? image_boxes[at[k]] : Box<float>{0, 0, 0, 0};
        box_area[k] = area(box[k]);
        best[k] = 0.0f, arg[k] = 0;
        huge[k] = is_huge(box[k]), keep[k] = is_finite(box[k]);
      }
      for (int64_t c = 0; c < shape.crowd; ++c) {
        const Box<float> region = crowd[b * shape.crowd + c];
        if (!is_real(region, true)) continue;
        const bool region_huge = is_huge(region);
#pragma unroll
        for (int k = 0; k < kBoxesPerThread; ++k) {
          keep[k] = keep[k] && !(pair_iof(box[k], box_area[k], huge[k], region, region_huge) > kCrowdShare);
        }
      }
      for (int64_t start = 0; start < shape.targets; start += kStage) {
        const int count = static_cast<int>(shape.targets - start < kStage ? shape.targets - start : kStage);
        __syncthreads();  // the last stage has been read
        if (static_cast<int>(threadIdx.x) < count) {
          const int64_t g = b * shape.targets + start + threadIdx.x;
          const Box<float> target = targets[g];
          staged[threadIdx.x] = {target, area(target)};
          staged_flags[threadIdx.x] = (is_real(target, valid[g]) ? 1 : 0) | (is_huge(target) ? 2 : 0);
        }
        __syncthreads();
        for (int j = 0; j < count; ++j) {
          const unsigned char flags = staged_flags[j];
          if (!(flags & 1)) continue;
          any_target = true;
          const StagedTarget target = staged[j];
          float top = 0.0f;
#pragma unroll
          for (int k = 0; k < kBoxesPerThread; ++k) {
            const float value = pair_iou(box[k], box_area[k], huge[k], target.box, target.area, flags & 2);
            if (value > best[k]) best[k] = value, arg[k] = static_cast<int>(start) + j;
            if (keep[k] && value > top) top = value;
          }
          if (!rules.low_quality) continue;
          const unsigned bits = warp_max(__float_as_uint(top));
          if (bits && threadIdx.x % 32 == 0) atomicMax(&chunk_tops[start + j], bits);
        }
      }
#pragma unroll
      for (int k = 0; k < kBoxesPerThread; ++k) {
        if (at[k] >= shape.boxes) continue;
        const int64_t out = b * shape.boxes + at[k];
        index[out] = arg[k];
        iou_out[out] = best[k];
        state[out] = keep[k] ? state_of(best[k], any_target, rules) : rules.low_quality ? kInCrowd : kIgnored;
      }
    }
  }
}

// grid and block as above.
__global__ void __launch_bounds__(kMatchThreads)
    claim_kernel(const Box<float>* __restrict__ boxes, const Box<float>* __restrict__ targets,
                 const unsigned* __restrict__ tops, int64_t* __restrict__ index, signed char* __restrict__ state,
                 MatchShape shape, MatchRules rules) {
  SHARED(unsigned, claimed_top, [kStage]);  // bits of the target's best IoU if this chunk reaches it, else 0
  for (int64_t b = blockIdx.y; b < shape.batch; b += gridDim.y) {
    const unsigned* image_tops = tops + b * shape.chunks * shape.targets;
    const int64_t begin = blockIdx.x * shape.tiles_per_chunk * kMatchTile;
    const int64_t rest = shape.boxes - begin, most = shape.tiles_per_chunk * kMatchTile;
    const int box_count = static_cast<int>(rest < most ? rest : most);
    const Box<float>* chunk_boxes = boxes + (shape.shared_boxes ? 0 : b * shape.boxes) + begin;
    int64_t* chunk_index = index + b * shape.boxes + begin;
    signed char* chunk_state = state + b * shape.boxes + begin;
    for (int64_t start = 0; start < shape.targets; start += kStage) {
      const int count = static_cast<int>(shape.targets - start < kStage ? shape.targets - start : kStage);
      __syncthreads();  // the last stage has been read
      if (static_cast<int>(threadIdx.x) < count) {
        const int64_t g = start + threadIdx.x;
        unsigned top = 0;
        for (int64_t chunk = 0; chunk < shape.chunks; ++chunk) {
          const unsigned other = image_tops[chunk * shape.targets + g];
          top = other > top ? other : top;
        }
        const bool here = image_tops[blockIdx.x * shape.targets + g] == top;
        claimed_top[threadIdx.x] = here && claims(__uint_as_float(top), rules) ? top : 0u;
      }
      __syncthreads();
      for (int j = 0; j < count; ++j) {
        if (!claimed_top[j]) continue;
        const float top = __uint_as_float(claimed_top[j]);
        const Box<float> target = targets[b * shape.targets + start + j];
        const float target_area = area(target);
        const bool target_huge = is_huge(target);
#pragma unroll 1  // unrolled, it spills around the division in double of the huge boxes
        for (int i = threadIdx.x; i < box_count; i += kMatchThreads) {
          const Box<float> box = chunk_boxes[i];
          const float value = pair_iou(box, area(box), is_huge(box), target, target_area, target_huge);
          if (value != top || chunk_state[i] == kInCrowd) continue;
          chunk_index[i] = start + j;
          chunk_state[i] = kPositive;
        }
      }
    }
    for (int i = threadIdx.x; i < box_count; i += kMatchThreads) {
      if (chunk_state[i] == kInCrowd) chunk_state[i] = kIgnored;
    }
  }
}

// tops: [B, chunks, G] zeros for the low-quality rule, else null. crowd may be null.
inline cudaError_t launch_match_boxes(const float* boxes, const float* targets, const bool* valid, const float* crowd,
                                      int64_t* index, float* iou_out, signed char* state, unsigned* tops,
                                      const MatchShape& shape, const MatchRules& rules, cudaStream_t stream) {
  if (shape.batch == 0 || shape.boxes == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(shape.chunks),
                  static_cast<unsigned>(shape.batch < 65535 ? shape.batch : 65535));
  const auto* box_pointer = reinterpret_cast<const Box<float>*>(boxes);
  const auto* target_pointer = reinterpret_cast<const Box<float>*>(targets);
  const cudaError_t error =
      launch(match_kernel, grid, dim3(kMatchThreads), 0, stream, box_pointer, target_pointer, valid,
             reinterpret_cast<const Box<float>*>(crowd), index, iou_out, state, tops, shape, rules);
  if (error != cudaSuccess || !rules.low_quality) return error;
  return launch(claim_kernel, grid, dim3(kMatchThreads), 0, stream, box_pointer, target_pointer, tops, index, state,
                shape, rules);
}

}  // namespace libra
