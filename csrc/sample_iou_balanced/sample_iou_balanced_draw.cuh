// How a block draws the samples of one image from candidates whose groups are known and counted.
//
// The counts alone tell how many each group gives (SamplePlan). So the bins and the positives are drawn at a time: each
// candidate of a group that gives a part gets its random word, a radix select finds the limit below which exactly the
// quota lies, and who is below is marked. A second draw of the same kind refills from what the bins left, and gives the
// last round of the positives that are dealt by target. Atomics only count and append to what is sorted afterwards: the
// result does not depend on the order of threads.
//
// Where the candidates lie is a template argument, so that their loads become those of shared memory where they lie
// there.
#pragma once

#include "common/block_scan.cuh"
#include "common/block_select.cuh"
#include "common/block_sort.cuh"
#include "sample_iou_balanced/sample_iou_balanced_math.h"

namespace libra {

constexpr int kSampleThreads = 1024;
constexpr int kItems = 2560;          // candidates that a block can hold in shared memory
constexpr int kItemBits = 12;         // enough for their numbers
constexpr int kShortTargetBits = 20;  // targets that are sorted in one word with 32 random bits and an item
constexpr int kMaxSlots = kMaxBins + 1;
static_assert(kItems <= 1 << kItemBits, "an item's number fits");

struct SampleShared {
  uint64_t keys[kItems];  // what is sorted; the histograms of the select
  uint32_t word[kItems], index[kItems];
  uint64_t limit[kMaxSlots];
  uint32_t need[kMaxSlots], eligible[kMaxSlots];
  uint32_t count[kMaxGroups];  // candidates of the image in each group
  float edges[kMaxBins + 1], warp_max[kSampleThreads / 32];
  uint32_t appended, rounds, given;
  uint8_t group[kItems];
};
constexpr int kSelectCounters = sizeof(SampleShared::keys) / sizeof(uint32_t);

// The candidates that a block draws from: all of an image's in global memory, or up to kItems in shared memory.
template <bool kInShared>
struct Candidates {
  uint8_t* group;         // [n]: its group, or that it is taken
  uint32_t* word;         // [n]: its random word in the current draw
  const uint32_t* index;  // [n], ascending: its place in the image; in global memory that is its place here
  int n;
  uint32_t image;
  uint64_t seed;

  __device__ __forceinline__ uint32_t number(int i) const { return kInShared ? index[i] : i; }
  __device__ __forceinline__ PhiloxWords words(int i) const { return philox(number(i), image, seed); }
};

// What follows from the counts of the groups: how many are taken of each kind.
struct SamplePlan {
  int positives, bin_quota;  // bin_quota of each bin, or all that it has
  int left, refill;          // how many the bins leave with those outside of them, and how many of these are taken
  int last_refill;           // of the last resort
  int negatives;
  bool deal;  // the positives, by target

  __device__ __forceinline__ SamplePlan(const uint32_t* count, const SampleOptions& options) {
    const int available = static_cast<int>(count[options.positives()]);
    positives = min(available, options.max_positives);
    deal = options.instance_balanced && positives > 0 && positives < available;
    const int wanted = negative_count(positives, options);
    bin_quota = wanted / options.num_bins;
    left = static_cast<int>(count[options.outside()]), negatives = 0;
    for (int bin = 0; bin < options.num_bins; ++bin) {
      const int all = static_cast<int>(count[bin]), some = min(all, bin_quota);
      negatives += some;
      left += all - some;
    }
    refill = min(wanted - negatives, left);
    last_refill = min(wanted - negatives - refill, static_cast<int>(count[options.last_resort()]));
    negatives += refill + last_refill;
  }

  // What group < num_bins gives before the refill.
  __device__ __forceinline__ int of_bin(uint32_t available) const {
    return min(static_cast<int>(available), bin_quota);
  }
};

// A bound on the words of those who can be among the `take` smallest of `available` uniform words, but once in 10^9.
__device__ __forceinline__ uint32_t word_limit(int take, int available) {
  const double enough = (take + 6 * sqrt(static_cast<double>(take)) + 16) / available;
  return enough >= 1 ? UINT32_MAX : static_cast<uint32_t>(enough * 4294967296.0);
}

// Marks of every slot's candidates the `take` with the smallest composites, all if it has no more; the last slot is of
// positives. slot_of(i): -1 for who takes no part. take_of(slot), available_of(slot): how many are taken, and how many
// there are in the image. False, and no more to be used, where `some` candidates are not there (sifted by word_limit)
// and one may be missing. Ends with a barrier.
template <SampleWord kNegativeWord, SampleWord kPositive, bool kInShared, class SlotOf, class TakeOf, class AvailableOf>
__device__ __forceinline__ bool take_smallest(const Candidates<kInShared>& all, int slots, bool sifted, SlotOf slot_of,
                                              TakeOf take_of, AvailableOf available_of, SampleShared& shared) {
  const int thread = threadIdx.x;
  bool part = false;  // some slot gives a part of its candidates
  if (thread < slots) {
    part = available_of(thread) > take_of(thread) && take_of(thread) > 0;
    shared.need[thread] = part ? take_of(thread) : 0;
    shared.limit[thread] = ~uint64_t(0);
    shared.eligible[thread] = 0;
  }
  if (__syncthreads_or(part)) {
    for (int i = thread; i < all.n; i += kSampleThreads) {
      const int slot = slot_of(i);
      if (slot < 0 || shared.need[slot] == 0) continue;
      const PhiloxWords words = all.words(i);
      const uint32_t word = slot == slots - 1 ? words.word[kPositive] : words.word[kNegativeWord];
      all.word[i] = word;
      if (sifted && word <= word_limit(take_of(slot), available_of(slot))) atomicAdd(&shared.eligible[slot], 1u);
    }
    __syncthreads();
    if (sifted && __syncthreads_or(part && shared.eligible[thread] < shared.need[thread])) return false;
    block_select<kSampleThreads, kSelectCounters>(slots, shared.need, shared.limit,
                                                  reinterpret_cast<uint32_t*>(shared.keys), all.n, slot_of,
                                                  [&](int i) { return composite(all.word[i], all.number(i)); });
  }
  for (int i = thread; i < all.n; i += kSampleThreads) {
    const int slot = slot_of(i);
    if (slot < 0) continue;
    const uint64_t limit = shared.limit[slot];  // all ones: the slot is taken whole, and has no words
    if (limit == ~uint64_t(0) || composite(all.word[i], all.number(i)) <= limit) {
      all.group[i] = slot == slots - 1 ? kTakenPositive : kTakenNegative;
    }
  }
  __syncthreads();
  return true;
}

// counters [positives], shared or global: how many targets give in each round. Sets shared.rounds, the round in which
// the quota is passed, and shared.given, what the rounds before it give.
__device__ __forceinline__ void find_last_round(const uint32_t* counters, int positives, uint32_t quota,
                                                SampleShared& shared) {
  uint32_t before_all = 0;
  for (int start = 0; start < positives; start += kSampleThreads) {
    const int round = start + threadIdx.x;
    const uint32_t gives = round < positives ? counters[round] : 0;
    uint32_t total;
    const uint32_t before = before_all + block_exclusive_sum<kSampleThreads>(gives, total);
    if (before <= quota && quota < before + gives) shared.rounds = round, shared.given = before;
    before_all += total;
  }
  __syncthreads();
}

// Of sorted items, how many before p are of the same target. target_of(p) ascends.
template <class TargetOf>
__device__ __forceinline__ int place_in_line(int p, TargetOf target_of) {
  int begin = 0, end = p;  // the first of the target lies in [begin, end]
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (target_of(middle) < target_of(p)) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return p - begin;
}

// Positives in rounds, in which every target that has one left gives one: marks who is taken in the full rounds, and
// puts who stands in the last one into the group last_round. In shared memory; false where a target does not fit.
__device__ __forceinline__ bool deal_positives(const Candidates<true>& all, const int64_t* target, int quota,
                                               int last_round, const SampleOptions& options, SampleShared& shared) {
  constexpr int kEach = (kItems + kSampleThreads - 1) / kSampleThreads;
  constexpr uint64_t kItemMask = (1 << kItemBits) - 1;
  const int thread = threadIdx.x, positives = static_cast<int>(shared.count[options.positives()]);
  if (thread == 0) shared.appended = 0;
  __syncthreads();
  bool fits = true;
  for (int start = 0; start < all.n; start += kSampleThreads) {  // whole warps append
    const int i = start + thread;
    const bool mine = i < all.n && all.group[i] == options.positives();
    const uint32_t at = warp_append(mine, &shared.appended);
    if (!mine) continue;
    const uint64_t of = static_cast<uint64_t>(target[all.number(i)]), word = all.words(i).word[kPositiveWord];
    fits = fits && of >> kShortTargetBits == 0;
    shared.keys[at] = of << (32 + kItemBits) | word << kItemBits | static_cast<uint64_t>(i);
  }
  if (__syncthreads_or(!fits)) return false;
  block_sort<kSampleThreads>(shared.keys, positives);
  for (int p = thread; p < positives; p += kSampleThreads) all.word[p] = 0;  // the rounds' counters
  __syncthreads();
  int place[kEach];
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int p = k * kSampleThreads + thread;
    if (p >= positives) continue;
    place[k] = place_in_line(p, [&](int of) { return shared.keys[of] >> (32 + kItemBits); });
    atomicAdd(&all.word[place[k]], 1u);
  }
  __syncthreads();
  find_last_round(all.word, positives, quota, shared);
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int p = k * kSampleThreads + thread, rounds = static_cast<int>(shared.rounds);
    if (p >= positives || place[k] > rounds) continue;
    all.group[shared.keys[p] & kItemMask] = static_cast<uint8_t>(place[k] < rounds ? kTakenPositive : last_round);
  }
  __syncthreads();
  return true;
}

// The same in global memory, for any targets and any number of positives. items [n].
__device__ __forceinline__ bool deal_positives(const Candidates<false>& all, const int64_t* target, SortItem* items,
                                               int quota, int last_round, const SampleOptions& options,
                                               SampleShared& shared) {
  const int thread = threadIdx.x, positives = static_cast<int>(shared.count[options.positives()]);
  if (thread == 0) shared.appended = 0;
  __syncthreads();
  for (int i = thread; i < all.n; i += kSampleThreads) {
    if (all.group[i] != options.positives()) continue;
    const uint32_t word = all.words(i).word[kPositiveWord];
    items[atomicAdd(&shared.appended, 1u)] = {static_cast<uint64_t>(target[i]), composite(word, i)};
  }
  for (int p = thread; p < positives; p += kSampleThreads) all.word[p] = 0;
  block_sort<kSampleThreads>(items, positives);
  for (int p = thread; p < positives; p += kSampleThreads) {
    const uint32_t place = place_in_line(p, [&](int of) { return items[of].major; });
    items[p].minor = composite(place, static_cast<uint32_t>(items[p].minor));  // others read only `major` now
    atomicAdd(&all.word[place], 1u);
  }
  __syncthreads();
  find_last_round(all.word, positives, quota, shared);
  for (int p = thread; p < positives; p += kSampleThreads) {
    const uint32_t place = items[p].minor >> 32, candidate = static_cast<uint32_t>(items[p].minor);
    if (place <= shared.rounds) all.group[candidate] = place < shared.rounds ? kTakenPositive : last_round;
  }
  __syncthreads();
  return true;
}

// Positives, then negatives, each in the order of the candidates, then padding: index, valid, positive [num_samples].
template <bool kInShared>
__device__ __forceinline__ void write_samples(const Candidates<kInShared>& all, int positives, int negatives,
                                              int num_samples, int64_t* index, bool* valid, bool* positive) {
  const int drawn = positives + negatives;
  uint32_t positives_before = 0, negatives_before = positives;
  for (int start = 0; start < all.n && positives_before + negatives_before < static_cast<uint32_t>(positives) + drawn;
       start += kSampleThreads) {
    const int i = start + threadIdx.x;
    const int group = i < all.n ? all.group[i] : 0;
    const uint32_t mine = group == kTakenPositive ? 1 : group == kTakenNegative ? 1 << 16 : 0;  // two sums in one
    uint32_t total;
    const uint32_t before = block_exclusive_sum<kSampleThreads>(mine, total);
    if (group == kTakenPositive) index[positives_before + (before & 0xffff)] = all.number(i);
    if (group == kTakenNegative) index[negatives_before + (before >> 16)] = all.number(i);
    positives_before += total & 0xffff;
    negatives_before += total >> 16;
  }
  for (int s = threadIdx.x; s < num_samples; s += kSampleThreads) {
    if (s >= drawn) index[s] = 0;
    valid[s] = s < drawn;
    positive[s] = s < positives;
  }
}

// shared.count and the candidates' groups are given; sifted: only candidates that can be drawn are there (word_limit).
// deal(quota, last_round) deals the positives. False, with nothing written, where these candidates do not suffice.
template <bool kInShared, class Deal>
__device__ __forceinline__ bool draw_samples(const Candidates<kInShared>& all, bool sifted, Deal deal,
                                             const SampleOptions& options, SampleShared& shared, int64_t* index,
                                             bool* valid, bool* positive) {
  const SamplePlan plan(shared.count, options);
  const int bins = options.num_bins, last_round = options.groups();
  if (plan.deal && !deal(plan.positives, last_round)) return false;
  const int last_quota = plan.deal ? plan.positives - static_cast<int>(shared.given) : 0;

  const auto first_take = [&](int slot) {
    return slot < bins ? plan.of_bin(shared.count[slot]) : plan.deal ? 0 : plan.positives;
  };
  const auto first_available = [&](int slot) {
    return static_cast<int>(shared.count[slot < bins ? slot : options.positives()]);
  };
  const auto first_slot = [&](int i) {
    const int group = all.group[i];
    if (group < bins) return plan.bin_quota > 0 ? group : -1;
    return group == options.positives() && !plan.deal && plan.positives > 0 ? bins : -1;
  };
  if (!take_smallest<kBinWord, kPositiveWord>(all, bins + 1, sifted, first_slot, first_take, first_available, shared)) {
    return false;
  }
  if (plan.refill + plan.last_refill + last_quota > 0) {
    // How many stand in the last round is known only where they are counted; more than are taken there.
    const auto second_take = [&](int slot) {
      return slot == 0 ? plan.refill : slot == 1 ? plan.last_refill : last_quota;
    };
    const auto second_available = [&](int slot) {
      return slot == 0 ? plan.left : slot == 1 ? static_cast<int>(shared.count[options.last_resort()]) : last_quota + 1;
    };
    const auto second_slot = [&](int i) {
      const int group = all.group[i];
      if (group <= options.outside()) return plan.refill > 0 ? 0 : -1;
      if (group == options.last_resort()) return plan.last_refill > 0 ? 1 : -1;
      return group == last_round && last_quota > 0 ? 2 : -1;
    };
    if (!take_smallest<kRefillWord, kLastRoundWord>(all, 3, sifted, second_slot, second_take, second_available,
                                                    shared)) {
      return false;
    }
  }
  write_samples(all, plan.positives, plan.negatives, options.num_samples, index, valid, positive);
  return true;
}

}  // namespace libra
