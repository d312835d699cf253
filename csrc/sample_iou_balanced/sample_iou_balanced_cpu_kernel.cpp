// sample_iou_balanced on the CPU: images in parallel; within one, a few linear passes and no sort.
//
// A pass gives every candidate its group (an IoU bin, outside, positive, ...), a counting sort lists the groups, and
// each group gives its smallest composites. Random words are computed only for groups of which a part is taken, in
// vector code, and only composites that can be among the smallest are kept. Taken candidates are marked, and a last
// pass writes them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "common/vector_clones.h"
#include "sample_iou_balanced/sample_iou_balanced_cpu_kernel.h"
#include "sample_iou_balanced/target_rounds.h"

namespace libra {
namespace {

constexpr int kBlock = 512;  // words computed at a time: they stay in L1
constexpr int kStreams = 4;  // counters per group, so that neighbours of one group do not wait for one another

LIBRA_VECTOR_CLONES
float max_iou(const float* iou, int64_t n) {
  constexpr int kLanes = 32;
  float lanes[kLanes], result = -INFINITY;
  for (float& lane : lanes) lane = result;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = iou[i + lane] > lanes[lane] ? iou[i + lane] : lanes[lane];
  for (; i < n; ++i) result = std::max(result, iou[i]);
  for (const float lane : lanes) result = std::max(result, lane);
  return result;
}

LIBRA_VECTOR_CLONES
void find_groups(const float* iou, const signed char* state, const float* edges, int64_t n,
                 const SampleOptions& options_in, uint8_t* group) {
  const SampleOptions options = options_in;  // a copy that stores to `group` cannot change
  for (int64_t start = 0; start < n; start += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, n - start));
    const float first = edges[0], last = edges[options.num_bins];
    int bin[kBlock] = {};
    for (int k = 1; k < options.num_bins; ++k)
      for (int i = 0; i < count; ++i) bin[i] += iou[start + i] >= edges[k];
    for (int i = 0; i < count; ++i)
      group[start + i] =
          static_cast<uint8_t>(candidate_group(bin[i], iou[start + i], state[start + i], first, last, options));
  }
}

LIBRA_VECTOR_CLONES
void random_words(const uint32_t* index, int count, uint32_t image, uint64_t seed, SampleWord word, uint32_t* words) {
  // Four loops, each of which keeps only the arithmetic that its word needs.
  if (word == kBinWord)
    for (int i = 0; i < count; ++i) words[i] = philox(index[i], image, seed).word[kBinWord];
  else if (word == kRefillWord)
    for (int i = 0; i < count; ++i) words[i] = philox(index[i], image, seed).word[kRefillWord];
  else if (word == kPositiveWord)
    for (int i = 0; i < count; ++i) words[i] = philox(index[i], image, seed).word[kPositiveWord];
  else
    for (int i = 0; i < count; ++i) words[i] = philox(index[i], image, seed).word[kLastRoundWord];
}

// Draws the samples of one image after another; its memory serves them all.
class Sampler {
 public:
  Sampler(const SampleOptions& options, int64_t candidates, uint64_t seed)
      : options_(options),
        n_(candidates),
        seed_(seed),
        group_(new uint8_t[candidates]),
        list_(new uint32_t[candidates]),
        rest_(new uint32_t[candidates]) {}

  void draw(int64_t image, const int64_t* target, const float* iou, const signed char* state, int64_t* index,
            bool* valid, bool* positive) {
    image_ = static_cast<uint32_t>(image);
    list_groups(iou, state);
    const int positives = take_positives(target);
    const int negatives = take_negatives(negative_count(positives, options_));
    write_samples(positives, negatives, index, valid, positive);
  }

 private:
  struct List {
    const uint32_t* index;
    int64_t count;
  };

  List list(int group) const { return {list_.get() + start_[group], start_[group + 1] - start_[group]}; }

  // group_ [n], and list_: the candidates of every group that can be drawn, one group after the other.
  void list_groups(const float* iou, const signed char* state) {
    const double low = options_.published ? 0.0 : options_.low;
    const double high = options_.published ? max_iou(iou, n_) : options_.high;
    float edges[kMaxBins + 1];
    for (int k = 0; k <= options_.num_bins; ++k) edges[k] = bin_edge(low, high, options_.num_bins, k);
    find_groups(iou, state, edges, n_, options_, group_.get());

    int64_t count[kMaxGroups][kStreams] = {};
    for (int64_t i = 0; i < n_; ++i) ++count[group_[i]][i % kStreams];
    int64_t next = 0;
    for (int group = 0; group < options_.groups(); ++group) {
      start_[group] = next;
      for (int64_t& begin : count[group]) next += std::exchange(begin, next);
    }
    start_[options_.groups()] = next;
    for (int64_t i = 0; i < n_; ++i) list_[count[group_[i]][i % kStreams]++] = static_cast<uint32_t>(i);
  }

  void take(List list, uint8_t mark) {
    for (int64_t i = 0; i < list.count; ++i) group_[list.index[i]] = mark;
  }

  // Marks the `quota` candidates of the list with the smallest composites. Returns how many were taken: all, if fewer.
  int64_t take_smallest(List list, int64_t quota, SampleWord word, uint8_t mark) {
    if (quota >= list.count) {
      take(list, mark);
      return list.count;
    }
    if (quota == 0) return 0;
    // Words are uniform, so the quota-th smallest is almost surely below this; if it is not, no limit is set.
    const double enough = (quota + 6 * std::sqrt(static_cast<double>(quota)) + 16) / static_cast<double>(list.count);
    if (enough >= 1 || collect(list, word, static_cast<uint32_t>(enough * 4294967296.0)) < quota)
      collect(list, word, UINT32_MAX);
    std::nth_element(composites_.begin(), composites_.begin() + quota, composites_.end());
    for (int64_t i = 0; i < quota; ++i) group_[static_cast<uint32_t>(composites_[i])] = mark;
    return quota;
  }

  // composites_: those of the list whose word is at most `limit`.
  int64_t collect(List list, SampleWord word, uint32_t limit) {
    composites_.clear();
    for (int64_t start = 0; start < list.count; start += kBlock) {
      const int count = static_cast<int>(std::min<int64_t>(kBlock, list.count - start));
      uint32_t words[kBlock];
      random_words(list.index + start, count, image_, seed_, word, words);
      size_t end = composites_.size();
      composites_.resize(end + count);
      for (int i = 0; i < count; ++i) {
        composites_[end] = composite(words[i], list.index[start + i]);
        end += words[i] <= limit;
      }
      composites_.resize(end);
    }
    return static_cast<int64_t>(composites_.size());
  }

  int take_positives(const int64_t* target) {
    const List all = list(options_.positives());
    if (!options_.instance_balanced || all.count <= options_.max_positives)
      return static_cast<int>(take_smallest(all, options_.max_positives, kPositiveWord, kTakenPositive));
    if (options_.max_positives == 0) return 0;
    collect(all, kPositiveWord, UINT32_MAX);
    rounds_.deal(composites_, target, options_.max_positives, group_.get(), kTakenPositive);
    // The last round is one that not every target can give to: who does is random.
    const List last{rounds_.last_round().data(), static_cast<int64_t>(rounds_.last_round().size())};
    take_smallest(last, rounds_.last_round_quota(), kLastRoundWord, kTakenPositive);
    return options_.max_positives;
  }

  int take_negatives(int64_t count) {
    const int64_t quota = count / options_.num_bins;
    int64_t taken = 0;
    for (int bin = 0; bin < options_.num_bins; ++bin)
      taken += take_smallest(list(bin), quota, kBinWord, kTakenNegative);
    if (taken < count) {  // the first groups lie side by side in list_
      List rest{rest_.get(), 0};
      for (int64_t i = 0; i < start_[options_.last_resort()]; ++i) {
        rest_[rest.count] = list_[i];
        rest.count += group_[list_[i]] != kTakenNegative;
      }
      taken += take_smallest(rest, count - taken, kRefillWord, kTakenNegative);
    }
    taken += take_smallest(list(options_.last_resort()), count - taken, kRefillWord, kTakenNegative);
    return static_cast<int>(taken);
  }

  // Positives, then negatives, each in the order of the candidates, then padding.
  void write_samples(int positives, int negatives, int64_t* index, bool* valid, bool* positive) const {
    const int drawn = positives + negatives;
    int64_t* next[2] = {index + positives, index};  // of negatives, of positives
    const auto write = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        if (group_[i] & 0x80) *next[group_[i] & 1]++ = i;
    };
    int64_t i = 0;
    for (; i + 8 <= n_; i += 8) {
      uint64_t eight;
      std::memcpy(&eight, group_.get() + i, 8);
      if (eight & 0x8080808080808080u) write(i, i + 8);
    }
    write(i, n_);
    std::fill(index + drawn, index + options_.num_samples, 0);
    for (int s = 0; s < options_.num_samples; ++s) {
      valid[s] = s < drawn;
      positive[s] = s < positives;
    }
  }

  const SampleOptions options_;
  const int64_t n_;
  const uint64_t seed_;
  uint32_t image_ = 0;
  std::unique_ptr<uint8_t[]> group_;         // [n]: group, or that the candidate is taken
  std::unique_ptr<uint32_t[]> list_, rest_;  // [n]
  int64_t start_[kMaxGroups + 1];            // of every group in list_
  std::vector<uint64_t> composites_;
  TargetRounds rounds_;
};

}  // namespace

void sample_iou_balanced(const SampleInputs& inputs, const SampleOptions& options, const SampleResults& results,
                         ParallelFor threads) {
  parallel_for(threads, inputs.images, 1, [&](int64_t begin, int64_t end) {
    Sampler sampler(options, inputs.candidates, inputs.seed);
    for (int64_t image = begin; image < end; ++image) {
      const int64_t in = image * inputs.candidates, out = image * options.num_samples;
      sampler.draw(image, inputs.index + in, inputs.iou + in, inputs.state + in, results.index + out,
                   results.valid + out, results.positive + out);
    }
  });
}

}  // namespace libra
