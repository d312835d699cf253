// match_boxes on the CPU: IoU, maximum, thresholds, crowd and the low-quality rule without a candidates x targets
// matrix.
//
// An image is cut into at most 64 chunks, chunks into tiles, and tiles into groups of 32 boxes
// (match_boxes_cpu_tile.h). A target is compared only with groups whose hull it overlaps, in vector code without
// branches: each box's best target is kept, and the group's best box for that target raises the target's standing.
//
// For the low-quality rule each chunk keeps of each target the highest IoU and the span of boxes that reach it. Where
// it is the highest of the image, the target claims those boxes of the span (one as a rule) that tie.
// Every chunk is one thread's, and targets are taken in order: the result does not depend on the number of threads.
#include "match_boxes/match_boxes_cpu_kernel.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "match_boxes/match_boxes_cpu_tile.h"

namespace libra {
namespace {

constexpr int64_t kMaxChunks = 64;         // of an image; for each, the low-quality rule keeps 12 bytes per target
constexpr int64_t kPairsPerJob = 1 << 17;  // below this a thread costs more than it saves
constexpr int64_t kSortTargets = 16;       // with fewer, sorting a tile costs more than it saves
constexpr int kBlock = 32;                 // targets that are compared with a hull at a time

struct Target {
  Box<float> box;
  int32_t index;
};

// Targets near a tile, in columns, as vector code wants them.
struct TargetBlock {
  alignas(64) float x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];
  int32_t index[kBlock];
  int32_t number[kBlock];               // among the image's real targets
  float top[kBlock];                    // highest IoU so far with a box that is not ignored
  int32_t first[kBlock], last[kBlock];  // groups of the tile that reach it lie between these; first is -1 if none does
  int count;
  bool any_huge;

  LIBRA_FORMULA Box<float> box(int t) const { return {x1[t], y1[t], x2[t], y2[t]}; }

  void add(const Target& target, int32_t its_number, float its_top) {
    const Box<float>& box = target.box;
    x1[count] = box.x1, y1[count] = box.y1, x2[count] = box.x2, y2[count] = box.y2;
    area[count] = libra::area(box), index[count] = target.index, number[count] = its_number;
    top[count] = its_top, first[count] = -1;
    any_huge |= is_huge(box);
    ++count;
  }
};

// A target's highest IoU with a chunk's boxes, and the span of those that reach it.
struct Standing {
  float top;            // 0: nothing that the target could claim
  int32_t first, last;  // boxes, counted from the chunk's first one

  void add(float iou, int32_t box) {
    if (iou > top) *this = {iou, box, box};
    first = std::min(first, box), last = std::max(last, box);
  }
};

// What a thread works with.
struct Scratch {
  Tile tile;
  std::vector<TargetBlock> blocks;
  std::vector<float> tops;  // of an image's real targets, in the chunks that this thread has seen
  int64_t image = -1;       // which
};

// Those of the block that the hull does not exclude, written to `near`. Returns how many.
LIBRA_VECTOR_CLONES
int find_near(const TargetBlock& block, const Box<float>& hull_in, int32_t* near) {
  const Box<float> hull = hull_in;
  alignas(64) uint8_t overlaps[kBlock];
  for (int t = 0; t < kBlock; ++t) {
    overlaps[t] = (block.x1[t] < hull.x2) & (block.y1[t] < hull.y2) & (block.x2[t] > hull.x1) & (block.y2[t] > hull.y1);
  }
  int count = 0;
  for (int t = 0; t < block.count; ++t) {
    near[count] = t;
    count += overlaps[t];
  }
  return count;
}

// Compares a group with some targets in turn: its boxes' best are kept, and of each target the highest IoU with a box
// that is not ignored. That maximum is taken of the bits: those of numbers that are not negative are in the numbers'
// order, and compilers vectorise an integer's maximum.
LIBRA_VECTOR_CLONES
void match_group(Tile& tile, int64_t at, const TargetBlock& block, const int32_t* near, int count, float* tops) {
  for (int n = 0; n < count; ++n) {
    const Box<float> target = block.box(near[n]);
    const float target_area = block.area[near[n]];
    const int32_t index = block.index[near[n]];
    int32_t top = 0;
    for (int i = 0; i < kGroup; ++i) {  // from 0: with another begin compilers do not know the number of rounds
      const float value = iou(tile.box(at + i), tile.area[at + i], target, target_area);
      tile.index[at + i] = value > tile.best[at + i] ? index : tile.index[at + i];
      tile.best[at + i] = maximum(value, tile.best[at + i]);
      top = std::max(top, bits_of(value) & tile.keep[at + i]);
    }
    tops[n] = of_bits(top);
  }
}

// The same, box by box, where a product of coordinates could overflow float32.
void match_group_huge(Tile& tile, int64_t at, const TargetBlock& block, const int32_t* near, int count, float* tops) {
  for (int n = 0; n < count; ++n) {
    tops[n] = 0.0f;
    for (int64_t i = at; i < at + kGroup; ++i) {
      const float value = tile.iou_with(i, block.box(near[n]), block.area[near[n]]);
      if (value > tile.best[i]) tile.best[i] = value, tile.index[i] = block.index[near[n]];
      if (tile.keep[i] && value > tops[n]) tops[n] = value;
    }
  }
}

LIBRA_VECTOR_CLONES
void group_ious(const Tile& tile, int64_t at, bool huge, const Box<float>& target_in, float target_area, float* ious) {
  const Box<float> target = target_in;
  if (huge) {
    for (int i = 0; i < kGroup; ++i) ious[i] = tile.iou_with(at + i, target, target_area);
  } else {
    for (int i = 0; i < kGroup; ++i) ious[i] = iou(tile.box(at + i), tile.area[at + i], target, target_area);
  }
}

// The boxes of groups first..last that are not ignored and have this IoU with the target: f(box).
template <class F>
void for_each_tie(const Tile& tile, int first, int last, const Box<float>& target, float top, const F& f) {
  const float target_area = area(target);
  for (int g = first; g <= last; ++g) {
    if (apart(tile.hulls[g], target)) continue;
    float ious[kGroup];
    group_ious(tile, int64_t(g) * kGroup, tile.huge[g] || is_huge(target), target, target_area, ious);
    for (int i = 0; i < kGroup; ++i) {
      const int box = g * kGroup + i;
      if (ious[i] == top && tile.keep[box] && box < tile.count) f(box);
    }
  }
}

class Matcher {
 public:
  Matcher(const MatchInputs& inputs, const MatchResults& results, ParallelFor threads)
      : inputs_(inputs), results_(results), threads_(threads) {
    const auto& a = inputs;
    // Tiles of 512 boxes where there are so many targets that threads should share a few boxes.
    const int64_t smallest = kTile * a.targets_per_image <= 2 * kPairsPerJob ? kTile : kTile / 4;
    const int64_t boxes = std::max(smallest, (a.boxes_per_image + kMaxChunks - 1) / kMaxChunks);
    tile_ = std::min<int64_t>(boxes, kTile);
    chunk_ = (boxes + tile_ - 1) / tile_ * tile_;
    chunks_ = (a.boxes_per_image + chunk_ - 1) / chunk_;
    for (int64_t b = 0; b < a.batch; ++b) {
      first_target_.push_back(targets_.size());
      for (int64_t t = 0; t < a.targets_per_image; ++t) {
        const int64_t at = b * a.targets_per_image + t;
        if (is_real(a.targets[at], a.valid[at] != 0)) targets_.push_back({a.targets[at], static_cast<int32_t>(t)});
      }
    }
    first_target_.push_back(targets_.size());
    if (a.rules.low_quality) standings_.reset(new Standing[chunks_ * targets_.size()]);
  }

  void run() {
    // Reading and writing a box costs as much as comparing it with a few targets.
    const int64_t pairs = std::min(chunk_, inputs_.boxes_per_image) * (inputs_.targets_per_image + 8);
    parallel_for(threads_, inputs_.batch * chunks_, kPairsPerJob / std::max<int64_t>(1, pairs) + 1,
                 [&](int64_t begin, int64_t end) {
                   Scratch scratch;
                   for (int64_t job = begin; job < end; ++job) match_chunk(job / chunks_, job % chunks_, scratch);
                 });
    if (inputs_.rules.low_quality) claim();
  }

 private:
  const Box<float>* boxes(int64_t b) const {
    return inputs_.boxes + (inputs_.shared_boxes ? 0 : b * inputs_.boxes_per_image);
  }
  const Target* targets(int64_t b) const { return targets_.data() + first_target_[b]; }
  int64_t target_count(int64_t b) const { return first_target_[b + 1] - first_target_[b]; }
  Standing* standings(int64_t b, int64_t chunk) const {
    return standings_.get() + first_target_[b] * chunks_ + chunk * target_count(b);
  }

  void match_chunk(int64_t b, int64_t chunk, Scratch& scratch) const {
    Tile& tile = scratch.tile;
    const int64_t count = target_count(b);
    if (scratch.image != b) scratch.image = b, scratch.tops.assign(count, inputs_.rules.min_positive_iou);
    if (inputs_.rules.low_quality) std::fill_n(standings(b, chunk), count, Standing{0, 0, 0});
    const int64_t end = std::min(inputs_.boxes_per_image, (chunk + 1) * chunk_);
    for (int64_t begin = chunk * chunk_; begin < end; begin += tile_) {
      load(b, begin, static_cast<int>(std::min(tile_, end - begin)), count >= kSortTargets, tile);
      gather_targets(b, scratch);
      for (TargetBlock& block : scratch.blocks) match_tile(tile, block);
      if (inputs_.rules.low_quality) note_tops(begin - chunk * chunk_, scratch, standings(b, chunk));
      const int64_t at = b * inputs_.boxes_per_image + begin;
      store_tile(tile, count > 0, inputs_.rules, results_.index + at, results_.iou + at, results_.state + at);
    }
  }

  void load(int64_t b, int64_t begin, int count, bool may_sort, Tile& tile) const {
    Box<float> frame;
    if (may_sort && is_scattered(boxes(b) + begin, count, frame)) {
      load_sorted_tile(boxes(b) + begin, count, frame, tile);
    } else {
      load_tile(boxes(b) + begin, count, tile);
    }
    for (int64_t c = 0; c < inputs_.crowd_per_image; ++c) {
      const Box<float>& region = inputs_.crowd[b * inputs_.crowd_per_image + c];
      if (is_real(region, true)) ignore_crowd(tile, region);
    }
  }

  void gather_targets(int64_t b, Scratch& scratch) const {
    scratch.blocks.clear();
    const Target* all = targets(b);
    for (int64_t t = 0; t < target_count(b); ++t) {
      if (apart(scratch.tile.hull, all[t].box)) continue;
      if (scratch.blocks.empty() || scratch.blocks.back().count == kBlock) scratch.blocks.emplace_back();
      scratch.blocks.back().add(all[t], static_cast<int32_t>(t), scratch.tops[t]);
    }
  }

  void match_tile(Tile& tile, TargetBlock& block) const {
    int32_t near[kBlock];
    float tops[kBlock];
    for (int g = 0; g < tile.groups; ++g) {
      const int count = find_near(block, tile.hulls[g], near);
      (tile.huge[g] || block.any_huge ? match_group_huge : match_group)(tile, int64_t(g) * kGroup, block, near, count,
                                                                        tops);
      for (int n = 0; n < count; ++n) {
        const int t = near[n];
        if (tops[n] < block.top[t]) continue;
        if (tops[n] > block.top[t] || block.first[t] < 0) block.first[t] = g;
        block.top[t] = tops[n], block.last[t] = g;
      }
    }
  }

  // The tile's targets that reached a new highest IoU, or the same again. first_box: the tile's, counted from the
  // chunk's.
  void note_tops(int64_t first_box, Scratch& scratch, Standing* standings) const {
    for (const TargetBlock& block : scratch.blocks) {
      for (int t = 0; t < block.count; ++t) {
        if (block.first[t] < 0 || !claims(block.top[t], inputs_.rules)) continue;
        scratch.tops[block.number[t]] = block.top[t];
        for_each_tie(scratch.tile, block.first[t], block.last[t], block.box(t), block.top[t], [&](int i) {
          standings[block.number[t]].add(block.top[t], static_cast<int32_t>(first_box) + scratch.tile.place_of(i));
        });
      }
    }
  }

  // The low-quality rule: every target claims the boxes that reach its highest IoU of the whole image.
  void claim() const {
    std::vector<float> tops(targets_.size());
    int64_t spans = 0;  // boxes to look at
    for (int64_t b = 0; b < inputs_.batch; ++b) {
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
        const Standing* standing = standings(b, chunk);
        for (int64_t t = 0; t < target_count(b); ++t) {
          tops[first_target_[b] + t] = std::max(tops[first_target_[b] + t], standing[t].top);
          spans += standing[t].last - standing[t].first;
        }
      }
    }
    const int64_t jobs = inputs_.batch * chunks_;
    const int64_t grain = std::max<int64_t>(1, jobs * kPairsPerJob / 4 / std::max<int64_t>(1, spans));
    parallel_for(threads_, jobs, grain, [&](int64_t begin, int64_t end) {
      Tile tile;
      for (int64_t job = begin; job < end; ++job) claim_chunk(job / chunks_, job % chunks_, tops.data(), tile);
    });
  }

  void claim_chunk(int64_t b, int64_t chunk, const float* tops, Tile& tile) const {
    for (int64_t t = 0; t < target_count(b); ++t) {
      const Target& target = targets(b)[t];
      const Standing& standing = standings(b, chunk)[t];
      if (standing.top == 0 || standing.top != tops[first_target_[b] + t]) continue;
      const int64_t end = chunk * chunk_ + standing.last + 1;
      for (int64_t begin = chunk * chunk_ + standing.first; begin < end; begin += kTile) {
        load(b, begin, static_cast<int>(std::min<int64_t>(kTile, end - begin)), false, tile);
        for_each_tie(tile, 0, tile.groups - 1, target.box, standing.top, [&](int i) {
          results_.index[b * inputs_.boxes_per_image + begin + i] = target.index;
          results_.state[b * inputs_.boxes_per_image + begin + i] = kPositive;
        });
      }
    }
  }

  const MatchInputs& inputs_;
  const MatchResults& results_;
  const ParallelFor threads_;
  int64_t tile_, chunk_;                   // boxes
  int64_t chunks_;                         // of an image
  std::vector<Target> targets_;            // those that can be found, image after image
  std::vector<int64_t> first_target_;      // [batch + 1]: where those of an image begin, and the end
  std::unique_ptr<Standing[]> standings_;  // of every image, chunk and real target
};

}  // namespace

void match_boxes(const MatchInputs& inputs, const MatchResults& results, ParallelFor threads) {
  if (inputs.batch == 0 || inputs.boxes_per_image == 0) return;  // of empty images there can be 2^60
  Matcher(inputs, results, threads).run();
}

}  // namespace libra
