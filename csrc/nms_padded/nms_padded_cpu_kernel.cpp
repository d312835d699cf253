// nms_padded on the CPU: images are shared out over threads; each is done in three steps.
//
// 1. collect: the slots that take part, found by flags in vector code, as numbers of rank and slot.
// 2. sort: by these numbers, so by falling score, ties by the lower slot.
// 3. greedy: a candidate is compared with the kept boxes of its group alone, 16 at a time, and the walk ends as soon as
//    enough are kept. A comparison in float32 tells almost always that nothing suppresses it; only otherwise
//    one in float64 decides.
#include "nms_padded/nms_padded_cpu_kernel.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "common/vector_clones.h"

namespace libra {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kChunk = 4096;           // slots whose flags are made at a time
constexpr int64_t kSlotsPerThread = 4096;  // the least that is worth waking a thread for
constexpr int64_t kRadixFrom = 256;        // candidates from which counting sort pays
constexpr int kDigitBits = 11;             // three digits of a rank
constexpr int kDigits = 3;

// Kept boxes of one group, in columns; free lanes hold a box that overlaps none.
struct KeptBlock {
  alignas(64) float x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes], area[kLanes];

  void clear() {
    for (float* corner : {x1, y1}) std::fill_n(corner, kLanes, INFINITY);
    for (float* corner : {x2, y2}) std::fill_n(corner, kLanes, -INFINITY);
    std::fill_n(area, kLanes, 0.0f);
  }

  void set(int lane, const Box<float>& box) {
    x1[lane] = box.x1, y1[lane] = box.y1, x2[lane] = box.x2, y2[lane] = box.y2;
    area[lane] = signed_area(box);
  }

  LIBRA_FORMULA Box<float> box(int lane) const { return {x1[lane], y1[lane], x2[lane], y2[lane]}; }
};

// flags[i]: the slot's score takes part. The loops have no branch, for the compiler to make vector code of them.
LIBRA_VECTOR_CLONES
void flag_scores(const float* scores, const uint8_t* valid, int64_t n, const NmsRules& rules_in, uint8_t* flags) {
  const NmsRules rules = rules_in;
  if (rules.has_score_threshold) {
    for (int64_t i = 0; i < n; ++i) flags[i] = scores[i] > rules.score_threshold;
  } else {
    for (int64_t i = 0; i < n; ++i) flags[i] = scores[i] == scores[i];
  }
  for (int64_t i = 0; valid && i < n; ++i) flags[i] &= valid[i] != 0;
}

// Whether one of the blocks' boxes suppresses the box.
LIBRA_VECTOR_CLONES
bool any_suppresses(const KeptBlock* blocks, int64_t count, const Box<float>& box_in, const IouBound& bound_in) {
  const Box<float> box = box_in;
  const IouBound bound = bound_in;
  const float area = signed_area(box);
  for (int64_t b = 0; b < count; ++b) {
    const KeptBlock& kept = blocks[b];
    int32_t close = 0;
    for (int i = 0; i < kLanes; ++i) close |= may_suppress(kept.box(i), kept.area[i], box, area, bound);
    if (!close) continue;
    for (int i = 0; i < kLanes; ++i) {
      if (suppresses(kept.box(i), kept.area[i], box, area, bound)) return true;
    }
  }
  return false;
}

// Groups by their number, with open addressing.
class GroupTable {
 public:
  // For at most `groups` of them.
  void clear(int64_t groups) {
    bits_ = 4;
    while (int64_t(1) << bits_ < 2 * groups) ++bits_;
    entries_.assign(size_t(1) << bits_, {0, -1});
  }

  // Where the group's position is kept: -1 as long as it is new.
  int32_t& find(int64_t group) {
    const size_t mask = (size_t(1) << bits_) - 1;
    size_t at = static_cast<uint64_t>(group) * 0x9E3779B97F4A7C15ull >> (64 - bits_);
    while (entries_[at].position >= 0 && entries_[at].group != group) at = (at + 1) & mask;
    entries_[at].group = group;
    return entries_[at].position;
  }

 private:
  struct Entry {
    int64_t group;
    int32_t position;
  };
  int bits_ = 4;
  std::vector<Entry> entries_;
};

// Suppresses within one image after another; its memory serves them all.
class Suppressor {
 public:
  Suppressor(const NmsInputs& inputs, const NmsRules& rules) : inputs_(inputs), rules_(rules) {}

  void run(int64_t image, int64_t* index, bool* valid) {
    const int64_t first = image * inputs_.slots;
    boxes_ = inputs_.boxes + first;
    groups_ = inputs_.groups ? inputs_.groups + first : nullptr;
    collect(inputs_.scores + first, inputs_.valid ? inputs_.valid + first : nullptr);
    sort();
    const int64_t kept = keep_best(index);
    std::fill(index + kept, index + rules_.max_output, 0);
    std::fill(valid, valid + kept, true);
    std::fill(valid + kept, valid + rules_.max_output, false);
  }

 private:
  struct Group {
    int64_t first, room;  // its blocks
    int64_t count;        // kept boxes
  };

  void collect(const float* scores, const uint8_t* valid) {
    candidates_.clear();
    alignas(64) uint8_t flags[kChunk];
    for (int64_t start = 0; start < inputs_.slots; start += kChunk) {
      const int64_t n = std::min(kChunk, inputs_.slots - start);
      flag_scores(scores + start, valid ? valid + start : nullptr, n, rules_, flags);
      std::fill(flags + n, flags + (n + 7) / 8 * 8, uint8_t{0});
      for (int64_t at = 0; at < n; at += 8) {
        uint64_t eight;
        memcpy(&eight, flags + at, 8);
        if (!eight) continue;
        for (int64_t i = at; i < at + 8; ++i) {
          const int64_t slot = start + i;
          if (flags[i] && is_finite(boxes_[slot])) {
            candidates_.push_back(uint64_t{score_rank(scores[slot])} << 32 | static_cast<uint64_t>(slot));
          }
        }
      }
    }
  }

  // Candidates come in the order of their slots, which a counting sort of their ranks keeps among equals.
  void sort() {
    const int64_t n = static_cast<int64_t>(candidates_.size());
    if (n < kRadixFrom) {
      std::sort(candidates_.begin(), candidates_.end());
      return;
    }
    constexpr int kBuckets = 1 << kDigitBits;
    const auto digit = [](uint64_t number, int d) { return number >> (32 + d * kDigitBits) & (kBuckets - 1); };
    counts_.assign(kDigits * kBuckets, 0);
    for (const uint64_t number : candidates_) {
      for (int d = 0; d < kDigits; ++d) ++counts_[d * kBuckets + digit(number, d)];
    }
    sorted_.resize(n);
    for (int d = 0; d < kDigits; ++d) {
      uint32_t* places = counts_.data() + d * kBuckets;
      if (places[digit(candidates_[0], d)] == n) continue;  // all alike
      uint32_t sum = 0;
      for (int bucket = 0; bucket < kBuckets; ++bucket) {
        const uint32_t count = places[bucket];
        places[bucket] = sum;
        sum += count;
      }
      for (const uint64_t number : candidates_) sorted_[places[digit(number, d)]++] = number;
      candidates_.swap(sorted_);
    }
  }

  // Writes the kept slots; returns how many.
  int64_t keep_best(int64_t* index) {
    int64_t kept = 0;
    known_.clear();
    blocks_.clear();
    if (groups_) table_.clear(std::min<int64_t>(rules_.max_output, candidates_.size()));
    for (const uint64_t number : candidates_) {
      if (kept == rules_.max_output) break;
      const auto slot = static_cast<uint32_t>(number);
      Group& group = group_of(slot);
      if (group.count &&
          any_suppresses(&blocks_[group.first], (group.count + kLanes - 1) / kLanes, boxes_[slot], rules_.iou)) {
        continue;
      }
      add(group, boxes_[slot]);
      index[kept++] = slot;
    }
    return kept;
  }

  // A new group's first box is always kept, so there are never more groups than kept boxes.
  Group& group_of(uint32_t slot) {
    if (!groups_) {
      if (known_.empty()) known_.push_back({0, 0, 0});
      return known_[0];
    }
    int32_t& position = table_.find(groups_[slot]);
    if (position < 0) {
      position = static_cast<int32_t>(known_.size());
      known_.push_back({0, 0, 0});
    }
    return known_[position];
  }

  void add(Group& group, const Box<float>& box) {
    const int64_t block = group.count / kLanes;
    if (block == group.room) {  // it moves to a place of twice the room
      const auto first = static_cast<int64_t>(blocks_.size());
      const int64_t room = std::max<int64_t>(1, 2 * group.room);
      blocks_.resize(first + room);
      std::copy_n(blocks_.begin() + group.first, group.room, blocks_.begin() + first);
      group.first = first, group.room = room;
    }
    KeptBlock& last = blocks_[group.first + block];
    if (group.count % kLanes == 0) last.clear();
    last.set(static_cast<int>(group.count++ % kLanes), box);
  }

  const NmsInputs& inputs_;
  const NmsRules& rules_;
  const Box<float>* boxes_ = nullptr;  // of the image
  const int64_t* groups_ = nullptr;    // of the image
  std::vector<uint64_t> candidates_;   // rank << 32 | slot
  std::vector<uint64_t> sorted_;       // the other half of a counting sort
  std::vector<uint32_t> counts_;       // of the digits
  GroupTable table_;                   // positions in known_
  std::vector<Group> known_;
  std::vector<KeptBlock> blocks_;
};

}  // namespace

void nms_padded(const NmsInputs& inputs, const NmsRules& rules, const NmsResults& results, ParallelFor threads) {
  const int64_t slots = rules.max_output;
  if (inputs.batch == 0 || slots == 0) return;  // of empty images there can be 2^60
  const int64_t grain = std::max<int64_t>(1, kSlotsPerThread / inputs.slots);
  parallel_for(threads, inputs.batch, grain, [&](int64_t begin, int64_t end) {
    Suppressor suppressor(inputs, rules);
    for (int64_t image = begin; image < end; ++image) {
      suppressor.run(image, results.index + image * slots, results.valid + image * slots);
    }
  });
}

}  // namespace libra
