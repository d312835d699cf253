// Positives dealt in rounds, as on the CPU: in every round each target that has positives left gives one.
//
// With counts c of the targets and `quota` positives to give, the full rounds are the largest r with sum min(c, r) <=
// quota. So a target gives its r smallest composites, or all; its next smallest stands in the last round, from which
// the caller draws what is missing. All of it is linear in the number of positives.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace libra {

class TargetRounds {
 public:
  // composites: those of the positives, more than quota (>= 1); target [n]: of every candidate, any number.
  // Sets group[candidate] = mark for what the full rounds give.
  void deal(const std::vector<uint64_t>& composites, const int64_t* target, int64_t quota, uint8_t* group,
            uint8_t mark) {
    number_targets(composites, target);
    const int64_t rounds = full_rounds(quota);
    last_round_.clear();
    last_round_quota_ = quota;
    for (size_t t = 0; t + 1 < start_.size(); ++t) {
      const auto begin = by_target_.begin() + start_[t], end = by_target_.begin() + start_[t + 1];
      auto given = end;
      if (end - begin > rounds) {
        given = begin + rounds;
        std::nth_element(begin, given, end);
        last_round_.push_back(static_cast<uint32_t>(*given));
      }
      for (auto it = begin; it != given; ++it) group[static_cast<uint32_t>(*it)] = mark;
      last_round_quota_ -= given - begin;
    }
  }

  const std::vector<uint32_t>& last_round() const { return last_round_; }  // candidates
  int64_t last_round_quota() const { return last_round_quota_; }

 private:
  // by_target_: the composites, target after target; start_: where each begins, and the end.
  void number_targets(const std::vector<uint64_t>& composites, const int64_t* target) {
    int bits = 4;
    while ((size_t(1) << bits) < 2 * composites.size()) ++bits;
    slots_.assign(size_t(1) << bits, {0, -1});  // a hash table, half empty: targets may be any numbers
    number_.resize(composites.size());
    start_.assign(1, 0);
    for (size_t i = 0; i < composites.size(); ++i) {
      const int64_t value = target[static_cast<uint32_t>(composites[i])];
      size_t at = static_cast<uint64_t>(value) * 0x9E3779B97F4A7C15u >> (64 - bits);
      while (slots_[at].number >= 0 && slots_[at].target != value) at = (at + 1) & (slots_.size() - 1);
      if (slots_[at].number < 0) {
        slots_[at] = {value, static_cast<int64_t>(start_.size()) - 1};
        start_.push_back(0);
      }
      number_[i] = static_cast<uint32_t>(slots_[at].number);
      ++start_[number_[i] + 1];  // a count, until they are added up
    }
    for (size_t t = 1; t < start_.size(); ++t) start_[t] += start_[t - 1];
    next_.assign(start_.begin(), start_.end());
    by_target_.resize(composites.size());
    for (size_t i = 0; i < composites.size(); ++i) by_target_[next_[number_[i]]++] = composites[i];
  }

  int64_t full_rounds(int64_t quota) const {
    int64_t fits = 0, too_many = quota + 1;
    while (too_many - fits > 1) {
      const int64_t rounds = (fits + too_many) / 2;
      int64_t given = 0;
      for (size_t t = 0; t + 1 < start_.size(); ++t) given += std::min(start_[t + 1] - start_[t], rounds);
      (given <= quota ? fits : too_many) = rounds;
    }
    return fits;
  }

  struct Slot {
    int64_t target, number;  // number -1: free
  };
  std::vector<Slot> slots_;
  std::vector<uint32_t> number_;  // [positives]: the number of its target
  std::vector<int64_t> start_, next_;
  std::vector<uint64_t> by_target_;
  std::vector<uint32_t> last_round_;
  int64_t last_round_quota_ = 0;
};

}  // namespace libra
