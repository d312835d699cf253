// How a block suppresses within one segment: sorted slots of one image whose groups have the same hash.
//
// It takes 128 candidates at a time, four threads for each. First the candidate is compared with the kept boxes, tile
// by tile in shared memory; then with the better ones of its chunk, of which those that suppress it are bits of a mask.
// In rounds, all candidates whose suppressors are decided are decided: mostly there are a handful of rounds.
//
// Two groups of one hash are rare, and done one after the other.
#pragma once

#include <cstdint>

#include "common/block_reduce.cuh"
#include "nms_padded/nms_padded_math.h"

namespace libra {

constexpr int kNmsThreads = 512;
constexpr int kNmsChunk = 128;  // candidates at a time
constexpr int kNmsParts = 4;    // threads of a candidate; each sees every fourth box
constexpr int kNmsTile = 256;   // kept boxes in shared memory at a time

static_assert(kNmsTile <= kNmsThreads, "each thread loads at most one box of a tile");

constexpr uint64_t kNmsNoKey = ~uint64_t(0) >> 1;  // of a slot that takes no part; as an int64, the largest
constexpr uint32_t kNmsNoSegment = kNmsNoKey >> 32;
constexpr uint64_t kNmsNotKept = ~uint64_t(0);   // larger than any survivor's number
constexpr uint64_t kNmsLater = kNmsNotKept - 1;  // in the segment is another group, whose turn comes

struct NmsTensors {
  const Box<float>* boxes;  // [B, N]
  const float* scores;      // [B, N]
  const int64_t* groups;    // [B, N], or null
  const uint8_t* valid;     // [B, N], or null; bools, of which some makers fill more than the last bit
};

// A segment is 31 bits: the image and a hash of the group.
struct NmsShape {
  uint32_t total;  // slots of all images, below 2^31
  uint32_t slots;  // of one
  int hash_bits;

  static NmsShape make(int64_t batch, int64_t slots) {
    int image_bits = 1;
    while (int64_t(1) << image_bits <= batch) ++image_bits;  // so that no image is all ones, as kNmsNoKey
    return {static_cast<uint32_t>(batch * slots), static_cast<uint32_t>(slots), image_bits < 31 ? 31 - image_bits : 0};
  }

  LIBRA_HOST_DEVICE uint32_t first_segment(uint32_t image) const { return image << hash_bits; }

  LIBRA_HOST_DEVICE uint32_t segment(uint32_t image, int64_t group) const {
    const auto hash = static_cast<uint32_t>(static_cast<uint64_t>(group) * 0x9E3779B97F4A7C15ull >> 33);
    return first_segment(image) | hash >> (31 - hash_bits);
  }
};

// All slots in the order of their keys, [B N] each.
struct NmsSorted {
  const int64_t* keys;
  const int64_t* order;  // image * N + slot
  uint64_t* numbers;     // out: of a survivor, rank << 32 | slot, else kNmsNotKept, which it holds before
  Box<float>* kept;      // any content: a segment's kept boxes are listed from its begin on

  LIBRA_HOST_DEVICE uint32_t segment(int64_t place) const {
    return static_cast<uint32_t>(static_cast<uint64_t>(keys[place]) >> 32);
  }
};

struct NmsShared {
  alignas(16) Box<float> chunk[kNmsChunk];
  alignas(16) Box<float> tile[kNmsTile];
  float chunk_area[kNmsChunk], tile_area[kNmsTile];
  // Bit k of word p is candidate 4k + p of the chunk.
  unsigned stays[kNmsParts], gone[kNmsParts];
  unsigned begins[2];
  unsigned next;
};

// 16 bytes at once.
__device__ __forceinline__ Box<float> nms_load(const Box<float>* box) {
  const float4 four = *reinterpret_cast<const float4*>(box);
  return {four.x, four.y, four.z, four.w};
}

// Whether the vote of one of the candidate's four threads is yes. Whole warps call it.
__device__ __forceinline__ bool nms_any_part(bool vote) {
  return __ballot_sync(kFullWarp, vote) >> (threadIdx.x % 32 / kNmsParts * kNmsParts) & ((1u << kNmsParts) - 1);
}

__device__ __forceinline__ bool nms_overlaps(const Box<float>& a, float area_a, const Box<float>& b, float area_b,
                                             const IouBound& bound) {
  return may_suppress(a, area_a, b, area_b, bound) && suppresses(a, area_a, b, area_b, bound);
}

// Whether one of `count` kept boxes suppresses the candidate, if it is `alive`. The whole block calls it.
__device__ __forceinline__ bool nms_meets_kept(const Box<float>* kept, int count, bool alive, const Box<float>& box,
                                               float area, const IouBound& bound, NmsShared& shared) {
  const int part = threadIdx.x % kNmsParts;
  bool hit = false;
#pragma unroll 1
  for (int start = 0; start < count; start += kNmsTile) {
    const int n = min(kNmsTile, count - start);
    __syncthreads();  // the tile before has been read
    if (const int i = threadIdx.x; i < n) {
      const Box<float> one = nms_load(kept + start + i);
      shared.tile[i] = one;
      shared.tile_area[i] = signed_area(one);
    }
    __syncthreads();
    if (alive && !hit) {
#pragma unroll 2
      for (int i = part; i < n; i += kNmsParts) {
        if (nms_overlaps(nms_load(&shared.tile[i]), shared.tile_area[i], box, area, bound)) hit = true;
      }
    }
    hit = nms_any_part(hit);
  }
  return hit;
}

// Decides the chunk's candidates among each other: in the end each one's bit is in `stays` or in `gone`, or it was not
// alive and is in `gone`. The chunk's boxes are in shared memory. The whole block calls it.
__device__ __forceinline__ void nms_decide_chunk(bool alive, const Box<float>& box, float area, const IouBound& bound,
                                                 NmsShared& shared) {
  const int candidate = threadIdx.x / kNmsParts, part = threadIdx.x % kNmsParts;
  if (threadIdx.x < kNmsParts) shared.stays[threadIdx.x] = 0, shared.gone[threadIdx.x] = 0;
  unsigned suppressors = 0;
  if (alive) {
#pragma unroll 2
    for (int i = part; i < candidate; i += kNmsParts) {
      if (nms_overlaps(nms_load(&shared.chunk[i]), shared.chunk_area[i], box, area, bound)) {
        suppressors |= 1u << (i / kNmsParts);
      }
    }
  }
  __syncthreads();
  const unsigned bit = 1u << (candidate / kNmsParts);
  const int word = candidate % kNmsParts;
  if (!alive && part == 0) atomicOr(&shared.gone[word], bit);
  __syncthreads();
  bool open = alive;
#pragma unroll 1
  do {
    const bool loses = nms_any_part(open && (suppressors & shared.stays[part]));
    const bool waits = nms_any_part(open && (suppressors & ~shared.gone[part]));
    __syncthreads();  // all have read
    if (open && (loses || !waits)) {
      if (part == 0) atomicOr(loses ? &shared.gone[word] : &shared.stays[word], bit);
      open = false;
    }
  } while (__syncthreads_or(open));
}

// Suppresses among the segment's slots of one group; of others, the first time, the turn comes later. Returns whether
// there are any. The whole block calls it.
__device__ __forceinline__ bool nms_suppress_group(const NmsTensors& tensors, const NmsShape& shape,
                                                   const NmsRules& rules, const NmsSorted& sorted, int begin,
                                                   int64_t group, bool first_time, NmsShared& shared) {
  const int candidate = threadIdx.x / kNmsParts, part = threadIdx.x % kNmsParts;
  const uint32_t segment = sorted.segment(begin);
  bool others = false;
  int kept = 0;
  for (uint32_t start = begin;; start += kNmsChunk) {
    const uint32_t place = start + candidate;
    const bool inside = place < shape.total && sorted.segment(place) == segment;
    bool mine = inside && (first_time || sorted.numbers[place] == kNmsLater);
    Box<float> box{0, 0, 0, 0};
    if (mine) {
      const int64_t slot = sorted.order[place];
      if (tensors.groups && tensors.groups[slot] != group) {
        mine = false, others = true;
        if (first_time && part == 0) sorted.numbers[place] = kNmsLater;
      } else {
        box = nms_load(tensors.boxes + slot);
      }
    }
    const float area = signed_area(box);
    if (part == 0) shared.chunk[candidate] = box, shared.chunk_area[candidate] = area;
    const bool last = __syncthreads_count(inside) < kNmsThreads;
    const bool full = kept >= rules.max_output;
    const bool loses = nms_meets_kept(sorted.kept + begin, full ? 0 : kept, mine, box, area, rules.iou, shared);
    nms_decide_chunk(mine && !full && !loses, box, area, rules.iou, shared);
    if (mine && part == 0) {
      int rank = kept;  // among the kept ones
      for (int p = 0; p < kNmsParts; ++p) {
        const int before = (candidate + kNmsParts - 1 - p) / kNmsParts;  // bits of the word: candidates before this one
        rank += __popc(shared.stays[p] & (before < 32 ? (1u << before) - 1 : ~0u));
      }
      const bool stays = shared.stays[candidate % kNmsParts] >> (candidate / kNmsParts) & 1;
      if (stays && rank < rules.max_output) {
        sorted.kept[begin + rank] = shared.chunk[candidate];
        const auto slot = static_cast<uint32_t>(sorted.order[place]) % shape.slots;
        sorted.numbers[place] = static_cast<uint64_t>(sorted.keys[place]) << 32 | slot;
      } else if (!first_time) {
        sorted.numbers[place] = kNmsNotKept;
      }
    }
    for (int p = 0; p < kNmsParts; ++p) kept += __popc(shared.stays[p]);
    if (last || (full && !tensors.groups)) break;
    __syncthreads();  // the chunk and the words may be written again
  }
  return __syncthreads_or(others);
}

// The whole block calls it.
__device__ __forceinline__ void nms_suppress_segment(const NmsTensors& tensors, const NmsShape& shape,
                                                     const NmsRules& rules, const NmsSorted& sorted, int begin,
                                                     NmsShared& shared) {
  const uint32_t segment = sorted.segment(begin);
  bool first_time = true;
  for (uint32_t at = begin;;) {  // a place whose group's turn it is
    const int64_t group = tensors.groups ? tensors.groups[sorted.order[at]] : 0;
    if (!nms_suppress_group(tensors, shape, rules, sorted, at, group, first_time, shared)) return;
    first_time = false;
    do {  // the first place whose turn has not come
      if (threadIdx.x == 0) shared.next = static_cast<uint32_t>(shape.total);
      __syncthreads();
      const uint32_t place = at + threadIdx.x;
      const bool inside = place < shape.total && sorted.segment(place) == segment;
      if (inside && sorted.numbers[place] == kNmsLater) atomicMin(&shared.next, place);
      __syncthreads();
      at = shared.next < shape.total ? shared.next : at + kNmsThreads;
      __syncthreads();
    } while (sorted.numbers[at] != kNmsLater);
  }
}

}  // namespace libra
