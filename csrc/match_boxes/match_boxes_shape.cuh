// How the GPU's matching is laid out: blocks, tiles and chunks of boxes, and the memory they read and write.
#pragma once

#include "match_boxes/match_boxes_math.h"

namespace libra {

constexpr int kMatchThreads = 128;
constexpr int kStage = kMatchThreads;      // targets in shared memory at a time
constexpr int kManyBoxes = 4;              // of a thread, where there are enough boxes for every multiprocessor
constexpr int64_t kEnoughTiles = 264;      // of four boxes a thread: two for each of an H200's multiprocessors
constexpr int64_t kMaxMatchChunks = 1024;  // of an image; beyond, a block takes several tiles

struct MatchShape {
  int64_t batch, boxes;  // boxes, targets and crowd regions are those of an image
  int targets, crowd;
  int boxes_per_thread;         // 1 or kManyBoxes
  int tiles_per_chunk, chunks;  // of an image
  bool shared_boxes;

  static int choose_boxes_per_thread(int64_t batch, int64_t boxes) {
    constexpr int64_t kLarge = kMatchThreads * kManyBoxes;
    return batch * ((boxes + kLarge - 1) / kLarge) >= kEnoughTiles ? kManyBoxes : 1;
  }

  static MatchShape make(int64_t batch, int64_t boxes, int64_t targets, int64_t crowd, bool shared_boxes, int each) {
    const int64_t tile = kMatchThreads * each, tiles = (boxes + tile - 1) / tile;
    const int64_t per_chunk = tiles > kMaxMatchChunks ? (tiles + kMaxMatchChunks - 1) / kMaxMatchChunks : 1;
    return {batch,
            boxes,
            static_cast<int>(targets),
            static_cast<int>(crowd),
            each,
            static_cast<int>(per_chunk),
            static_cast<int>((tiles + per_chunk - 1) / per_chunk),
            shared_boxes};
  }

  int64_t tops() const { return batch * (targets + 1) * chunks; }
};

struct MatchTensors {
  const Box<float>*boxes, *targets, *crowd;  // 16-byte aligned; crowd may be null
  const uint8_t* valid;
  int64_t* index;
  float* iou;
  signed char* state;
  // [B, G + 1, chunks], null without low-quality rule: bits of the highest IoU that the chunk's boxes have with the
  // target, if it may be the target's best, else 0 (IoU is not negative, so the bits order as integers do). The last
  // row: whether the chunk has any.
  unsigned* tops;
};

// A part of an image that a block works on: `count` boxes from `boxes` on, whose results lie from `out` on.
struct MatchPart {
  int image, chunk, count;
  const Box<float>* boxes;
  int64_t out;

  __device__ __forceinline__ MatchPart(const MatchTensors& tensors, const MatchShape& shape, int image, int chunk,
                                       int64_t begin, int most)
      : image(image), chunk(chunk) {
    const int64_t rest = shape.boxes - begin;
    count = static_cast<int>(rest < most ? rest : most);
    out = image * shape.boxes + begin;
    boxes = tensors.boxes + (shape.shared_boxes ? begin : out);
  }
};

// Of a target, or of row G.
__device__ __forceinline__ unsigned* top_of(const MatchTensors& tensors, const MatchShape& shape, int image, int target,
                                            int chunk) {
  return tensors.tops + (image * (shape.targets + int64_t(1)) + target) * shape.chunks + chunk;
}

}  // namespace libra
