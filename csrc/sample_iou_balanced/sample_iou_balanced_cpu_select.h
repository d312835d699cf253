// The smallest composites of several groups at once, in linear time.
//
// Random words are uniform, so buckets of equal width hold about equally many. Composites are counted by bucket, and
// for each group the bucket is found that holds its quota-th smallest: what lies below is chosen, what lies above is
// not, and only the few within that bucket are compared.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "sample_iou_balanced/sample_iou_balanced_math.h"

namespace libra {

class SmallestOfGroups {
 public:
  void clear() { groups_.clear(); }

  // Adds a group: how many to choose, and the largest word that its composites have. Returns its number.
  int add(int64_t quota, uint32_t most) {
    groups_.push_back({quota, (uint64_t(kBuckets) << 32) / (uint64_t(most) + 1), 0, 0});
    return static_cast<int>(groups_.size()) - 1;
  }

  // number_of(candidate): of its group, or -1 if it is not to be chosen. Sets of[candidate] = mark for the chosen ones.
  // Returns false, and sets nothing, if a group has fewer composites than its quota.
  template <class NumberOf>
  bool run(const std::vector<uint64_t>& composites, const NumberOf& number_of, uint8_t* of, uint8_t mark) {
    counts_.assign(groups_.size() * kBuckets, 0);
    bucketed_.resize(composites.size());
    size_t count = 0;
    for (const uint64_t composite : composites) {
      const int number = number_of(static_cast<uint32_t>(composite));
      const int group = number < 0 ? 0 : number;
      const int bucket = group * kBuckets + static_cast<int>((composite >> 32) * groups_[group].scale >> 32);
      bucketed_[count] = {composite, bucket};
      count += number >= 0;
      counts_[bucket] += number >= 0;
    }
    for (size_t g = 0; g < groups_.size(); ++g) {
      int bucket = static_cast<int>(g) * kBuckets;
      const int end = bucket + kBuckets;
      int64_t missing = groups_[g].quota;
      while (bucket < end && counts_[bucket] <= missing) missing -= counts_[bucket++];
      if (bucket == end && missing > 0) return false;
      groups_[g].split = bucket, groups_[g].missing = missing;
    }
    size_t split = 0;
    for (size_t i = 0; i < count; ++i) {
      const auto [composite, bucket] = bucketed_[i];
      const int split_bucket = groups_[bucket / kBuckets].split;
      uint8_t& candidate = of[static_cast<uint32_t>(composite)];
      candidate = bucket < split_bucket ? mark : candidate;
      bucketed_[split] = {composite, bucket};  // at or before i
      split += bucket == split_bucket;
    }
    std::sort(bucketed_.begin(), bucketed_.begin() + split, [](const Bucketed& a, const Bucketed& b) {
      return a.bucket != b.bucket ? a.bucket < b.bucket : a.composite < b.composite;
    });
    for (size_t i = 0; i < split; ++i) {
      if (groups_[bucketed_[i].bucket / kBuckets].missing-- > 0)
        of[static_cast<uint32_t>(bucketed_[i].composite)] = mark;
    }
    return true;
  }

 private:
  static constexpr int kBuckets = 64;
  struct Group {
    int64_t quota;
    uint64_t scale;   // from a word to its bucket, by 2^-32
    int split;        // the bucket of which a part is chosen
    int64_t missing;  // from it
  };
  struct Bucketed {
    uint64_t composite;
    int bucket;
  };
  std::vector<Group> groups_;
  std::vector<int> counts_;         // of every group's buckets
  std::vector<Bucketed> bucketed_;  // those to choose from
};

}  // namespace libra
