// match_boxes on the CPU: IoU, maximum, thresholds, crowd and the low-quality rule without a candidates x targets
// matrix.
//
// The candidates of an image are cut into at most 64 chunks, and chunks into tiles that stay in L1. Pass 1 compares a
// tile with one target after another: a vector loop over the tile's boxes keeps each box's best target, and the tile's
// best box for that target raises the chunk's maximum. Pass 2 is the low-quality rule: a target claims every box that
// ties with its best, so only chunks that reach the target's maximum are looked at again, a 64th of the work or so.
// Every chunk is one thread's, and targets are taken in order: the result does not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/vector_clones.h"
#include "match_boxes/match_boxes_cpu_kernel.h"

namespace libra {
namespace {

constexpr int kTile = 512;                 // boxes: 14 KB of scratch
constexpr int64_t kMaxChunks = 64;         // per image; the second pass's memory is this times the targets
constexpr int64_t kPairsPerJob = 1 << 15;  // below this a thread costs more than it saves

struct Target {
  Box<float> box;
  float area;
  int64_t index;
  bool huge;
};

// Boxes of a tile, one array per coordinate, and what is known of each so far.
struct Tile {
  alignas(64) float x1[kTile], y1[kTile], x2[kTile], y2[kTile], area[kTile];
  alignas(64) float best[kTile];     // highest IoU
  alignas(64) int32_t index[kTile];  // its target
  alignas(64) float keep[kTile];     // 0 for an ignored box, else 1
  Box<float> hull;                   // of the tile's boxes: a target outside overlaps none
  bool huge, any_ignored;
};

struct Image {
  const Box<float>* boxes;
  std::vector<Target> targets;
  std::vector<Target> crowd;
};

std::vector<Target> real_targets(const Box<float>* boxes, const bool* valid, int64_t count) {
  std::vector<Target> result;
  for (int64_t i = 0; i < count; ++i) {
    if (is_real(boxes[i], !valid || valid[i])) result.push_back({boxes[i], area(boxes[i]), i, is_huge(boxes[i])});
  }
  return result;
}

LIBRA_VECTOR_CLONES
void load_tile(const Box<float>* boxes, int count, Tile& tile) {
  int huge = 0, ignored = 0;
  float left = INFINITY, top = INFINITY, right = -INFINITY, bottom = -INFINITY;
  for (int i = 0; i < kTile; ++i) {
    const Box<float> box = i < count ? boxes[i] : Box<float>{0, 0, 0, 0};
    tile.x1[i] = box.x1, tile.y1[i] = box.y1, tile.x2[i] = box.x2, tile.y2[i] = box.y2;
  }
  for (int i = 0; i < kTile; ++i) {
    const Box<float> box{tile.x1[i], tile.y1[i], tile.x2[i], tile.y2[i]};
    const bool finite = is_finite(box);
    tile.area[i] = area(box);
    tile.best[i] = 0.0f;
    tile.index[i] = 0;
    tile.keep[i] = finite ? 1.0f : 0.0f;
    ignored |= !finite;
    huge |= is_huge(box);
  }
  for (int i = 0; i < count; ++i) {  // comparisons with a NaN are false: such a box does not widen the hull
    left = tile.x1[i] < left ? tile.x1[i] : left;
    top = tile.y1[i] < top ? tile.y1[i] : top;
    right = tile.x2[i] > right ? tile.x2[i] : right;
    bottom = tile.y2[i] > bottom ? tile.y2[i] : bottom;
  }
  tile.hull = {left, top, right, bottom};
  tile.huge = huge, tile.any_ignored = ignored;
}

bool apart(const Box<float>& a, const Box<float>& b) {
  return a.x1 >= b.x2 || b.x1 >= a.x2 || a.y1 >= b.y2 || b.y1 >= a.y2;
}

// Compares the tile with one target. Returns the highest IoU of the boxes that are kept. Their maximum is taken of the
// bits: those of numbers that are not negative are in the numbers' order, and compilers vectorise an integer's maximum.
LIBRA_VECTOR_CLONES
float match_tile(Tile& tile, const Box<float>& target, float target_area, int32_t index) {
  int32_t top_bits = 0;
  for (int i = 0; i < kTile; ++i) {
    const Box<float> box{tile.x1[i], tile.y1[i], tile.x2[i], tile.y2[i]};
    const float value = iou(box, tile.area[i], target, target_area);
    const bool better = value > tile.best[i];
    tile.best[i] = better ? value : tile.best[i];
    tile.index[i] = better ? index : tile.index[i];
    const float kept = value * tile.keep[i];
    int32_t bits;
    std::memcpy(&bits, &kept, sizeof bits);
    top_bits = bits > top_bits ? bits : top_bits;
  }
  float top;
  std::memcpy(&top, &top_bits, sizeof top);
  return top;
}

// The same, box by box, where a product of coordinates could overflow float32.
float match_tile_huge(Tile& tile, int count, const Target& target) {
  float top = 0.0f;
  for (int i = 0; i < count; ++i) {
    const Box<float> box{tile.x1[i], tile.y1[i], tile.x2[i], tile.y2[i]};
    const float value = pair_iou(box, tile.area[i], is_huge(box), target.box, target.area, target.huge);
    if (value > tile.best[i]) tile.best[i] = value, tile.index[i] = static_cast<int32_t>(target.index);
    if (tile.keep[i] != 0 && value > top) top = value;
  }
  return top;
}

LIBRA_VECTOR_CLONES
void ignore_crowd(Tile& tile, const Box<float>& region) {
  for (int i = 0; i < kTile; ++i) {
    const Box<float> box{tile.x1[i], tile.y1[i], tile.x2[i], tile.y2[i]};
    tile.keep[i] = iof(box, tile.area[i], region) > kCrowdShare ? 0.0f : tile.keep[i];
  }
}

void ignore_crowd_huge(Tile& tile, int count, const Box<float>& region) {
  for (int i = 0; i < count; ++i) {
    const Box<float> box{tile.x1[i], tile.y1[i], tile.x2[i], tile.y2[i]};
    if (pair_iof(box, tile.area[i], is_huge(box), region, is_huge(region)) > kCrowdShare) tile.keep[i] = 0.0f;
  }
}

// Loads boxes [begin, begin + count) of an image and marks the ignored ones.
void prepare_tile(const Image& image, int64_t begin, int count, Tile& tile) {
  load_tile(image.boxes + begin, count, tile);
  for (const Target& region : image.crowd) {
    if (apart(tile.hull, region.box)) continue;
    tile.any_ignored = true;
    if (tile.huge || region.huge) {
      ignore_crowd_huge(tile, count, region.box);
    } else {
      ignore_crowd(tile, region.box);
    }
  }
}

class Matcher {
 public:
  Matcher(const MatchInputs& inputs, const MatchResults& results, ParallelFor threads)
      : inputs_(inputs), index_(results.index), iou_(results.iou), state_(results.state), threads_(threads) {
    const auto& a = inputs;
    const int64_t tiles = (a.boxes_per_image + kTile - 1) / kTile;
    tiles_per_chunk_ = std::max<int64_t>(1, (tiles + kMaxChunks - 1) / kMaxChunks);
    chunks_ = (tiles + tiles_per_chunk_ - 1) / tiles_per_chunk_;
    for (int64_t b = 0; b < a.batch; ++b) {
      images_.push_back({a.boxes + (a.shared_boxes ? 0 : b * a.boxes_per_image), {}, {}});
      images_.back().targets =
          real_targets(a.targets + b * a.targets_per_image, a.valid + b * a.targets_per_image, a.targets_per_image);
      images_.back().crowd = real_targets(a.crowd + b * a.crowd_per_image, nullptr, a.crowd_per_image);
    }
    if (a.rules.low_quality) tops_.resize(a.batch * chunks_ * a.targets_per_image);
  }

  void run() {
    for_each_chunk([this](int64_t image, int64_t chunk) { match_chunk(image, chunk); });
    if (inputs_.rules.low_quality) {
      for_each_chunk([this](int64_t image, int64_t chunk) { claim_chunk(image, chunk); });
    }
  }

 private:
  template <class F>
  void for_each_chunk(const F& f) {
    const int64_t pairs = tiles_per_chunk_ * kTile * std::max<int64_t>(1, inputs_.targets_per_image);
    const int64_t grain = std::max<int64_t>(1, kPairsPerJob / pairs);
    parallel_for(threads_, inputs_.batch * chunks_, grain, [&](int64_t begin, int64_t end) {
      for (int64_t job = begin; job < end; ++job) f(job / chunks_, job % chunks_);
    });
  }

  // f(first box, number of boxes) for every tile of the chunk.
  template <class F>
  void for_each_tile(int64_t chunk, const F& f) {
    const int64_t end = std::min(inputs_.boxes_per_image, (chunk + 1) * tiles_per_chunk_ * kTile);
    for (int64_t begin = chunk * tiles_per_chunk_ * kTile; begin < end; begin += kTile) {
      f(begin, static_cast<int>(std::min<int64_t>(kTile, end - begin)));
    }
  }

  float* tops(int64_t image, int64_t chunk) {
    return tops_.data() + (image * chunks_ + chunk) * inputs_.targets_per_image;
  }

  void match_chunk(int64_t b, int64_t chunk) {
    const Image& image = images_[b];
    const bool low_quality = inputs_.rules.low_quality;
    float* tops_of_chunk = low_quality ? tops(b, chunk) : nullptr;
    Tile tile;
    for_each_tile(chunk, [&](int64_t begin, int count) {
      prepare_tile(image, begin, count, tile);
      for (const Target& target : image.targets) {
        if (apart(tile.hull, target.box)) continue;
        const float top = tile.huge || target.huge
                              ? match_tile_huge(tile, count, target)
                              : match_tile(tile, target.box, target.area, static_cast<int32_t>(target.index));
        if (low_quality) tops_of_chunk[target.index] = std::max(tops_of_chunk[target.index], top);
      }
      const int64_t at = b * inputs_.boxes_per_image + begin;
      for (int i = 0; i < count; ++i) {
        index_[at + i] = tile.index[i];
        iou_[at + i] = tile.best[i];
        state_[at + i] = tile.keep[i] == 0 ? kIgnored : state_of(tile.best[i], !image.targets.empty(), inputs_.rules);
      }
    });
  }

  void claim_chunk(int64_t b, int64_t chunk) {
    const Image& image = images_[b];
    Tile tile;
    std::vector<const Target*> claiming;
    for (const Target& target : image.targets) {
      float top = 0.0f;
      for (int64_t other = 0; other < chunks_; ++other) top = std::max(top, tops(b, other)[target.index]);
      if (claims(top, inputs_.rules) && tops(b, chunk)[target.index] == top) claiming.push_back(&target);
    }
    if (claiming.empty()) return;
    for_each_tile(chunk, [&](int64_t begin, int count) {
      prepare_tile(image, begin, count, tile);
      const int64_t at = b * inputs_.boxes_per_image + begin;
      for (const Target* target : claiming) {
        if (apart(tile.hull, target->box)) continue;
        const float top = tops(b, chunk)[target->index];
        for (int i = 0; i < count; ++i) {
          const Box<float> box{tile.x1[i], tile.y1[i], tile.x2[i], tile.y2[i]};
          const float value = pair_iou(box, tile.area[i], is_huge(box), target->box, target->area, target->huge);
          if (value != top || tile.keep[i] == 0) continue;
          index_[at + i] = target->index;
          state_[at + i] = kPositive;
        }
      }
    });
  }

  const MatchInputs& inputs_;
  int64_t* index_;
  float* iou_;
  signed char* state_;
  const ParallelFor threads_;
  int64_t tiles_per_chunk_, chunks_;
  std::vector<Image> images_;
  std::vector<float> tops_;  // [batch, chunks, targets]: a target's highest IoU within a chunk
};

}  // namespace

void match_boxes(const MatchInputs& inputs, const MatchResults& results, ParallelFor threads) {
  Matcher(inputs, results, threads).run();
}

}  // namespace libra
