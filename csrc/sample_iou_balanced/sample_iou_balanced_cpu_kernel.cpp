// sample_iou_balanced on the CPU, in a few linear passes and without a sort; large images in parts, for several
// threads.
//
// The first pass gives every candidate its group (an IoU bin, outside, positive, ...) and counts the groups, from which
// follows how many each will give: groups of which all are taken need no random words. The second pass computes the
// words of the others, those for the bins and those for the refill at once, and keeps only candidates whose word is so
// small that they can be chosen. From these few the smallest are chosen. What is chosen is marked, and a last pass
// writes it.
#include "sample_iou_balanced/sample_iou_balanced_cpu_kernel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "sample_iou_balanced/sample_iou_balanced_cpu_passes.h"
#include "sample_iou_balanced/sample_iou_balanced_cpu_select.h"
#include "sample_iou_balanced/target_rounds.h"

namespace libra {
namespace {

constexpr int64_t kPart = 1 << 14;              // candidates: the least that is worth another thread within an image
constexpr int64_t kCandidatesPerJob = 1 << 12;  // of several small images: the same

// Draws the samples of one image after another; its memory serves them all.
class Sampler {
 public:
  // threads: for the parts of an image.
  Sampler(const SampleInputs& inputs, const SampleOptions& options, ParallelFor threads)
      : inputs_(inputs),
        options_(options),
        threads_(threads),
        n_(inputs.candidates),
        parts_(std::max<int64_t>(1, (n_ + kPart - 1) / kPart)),
        group_(new uint8_t[(n_ + kBlock - 1) / kBlock * kBlock]),
        found_(parts_) {}

  void draw(int64_t image, const SampleResults& results) {
    image_ = static_cast<uint32_t>(image);
    find_groups(inputs_.iou + image * n_, inputs_.state + image * n_);
    const int positives = take_positives(inputs_.index + image * n_);
    const int negatives = take_negatives(negative_count(positives, options_));
    const int64_t out = image * options_.num_samples;
    write_samples(positives, negatives, results.index + out, results.valid + out, results.positive + out);
  }

 private:
  template <class F>
  void for_each_part(const F& f) const {
    parallel_for(threads_, parts_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(i, Part{i * kPart, std::min(n_, (i + 1) * kPart)});
    });
  }

  // group_ [n], and how many candidates every group has.
  void find_groups(const float* iou, const signed char* state) {
    double low = options_.low, high = options_.high;
    if (options_.published) {
      std::vector<float> highest(parts_);
      for_each_part([&](int64_t i, Part part) { highest[i] = max_iou(iou, part); });
      low = 0, high = *std::max_element(highest.begin(), highest.end());
    }
    float edges[kMaxBins + 1];
    for (int k = 0; k <= options_.num_bins; ++k) edges[k] = bin_edge(low, high, options_.num_bins, k);
    std::vector<GroupCounts> counts(parts_);
    for_each_part(
        [&](int64_t i, Part part) { counts[i] = libra::find_groups(iou, state, edges, part, options_, group_.get()); });
    count_ = counts[0];
    for (int64_t i = 1; i < parts_; ++i)
      for (int g = 0; g < kMaxGroups; ++g) count_.of[g] += counts[i].of[g];
  }

  void take_all(int group, uint8_t mark) {
    if (count_.of[group] > 0) mark_group(group_.get(), n_, static_cast<uint8_t>(group), mark);
  }

  // A word that the quota-th smallest of `count` uniform words almost surely does not exceed.
  static uint32_t likely_limit(int64_t quota, int64_t count) {
    const double share = (quota + 5 * std::sqrt(static_cast<double>(quota)) + 12) / static_cast<double>(count);
    return share >= 1 ? UINT32_MAX : static_cast<uint32_t>(share * 4294967296.0);
  }

  // found_[0]: what all parts found.
  void find(const Query& query) {
    for_each_part([&](int64_t i, Part part) {
      found_[i].first.clear(), found_[i].second.clear();
      libra::find(query, 2 * query.candidates > n_, group_.get(), part, {image_, inputs_.seed, query.of_positives},
                  found_[i]);
    });
    for (int64_t i = 1; i < parts_; ++i) {
      found_[0].first.insert(found_[0].first.end(), found_[i].first.begin(), found_[i].first.end());
      found_[0].second.insert(found_[0].second.end(), found_[i].second.begin(), found_[i].second.end());
    }
  }

  // A query for the smallest `quota` first words of each group added to it.
  void add_group(Query& query, int group, int64_t quota) const {
    query.groups.push_back({group, likely_limit(quota, count_.of[group]), quota > 0});
    query.candidates += count_.of[group];
  }

  // Takes `quota` candidates of each of the query's groups that have one by their first word, and then `refill` of all
  // that are left by their second. Where a limit was too low after all, there is none in the next attempt.
  void take_smallest(Query query, int64_t quota, int64_t refill, uint8_t mark) {
    for (bool done = false; !done;) {
      find(query);
      int number[256];
      smallest_.clear();
      for (auto& [group, most, any] : query.groups) {
        if (any) number[group] = smallest_.add(quota, most);
        most = UINT32_MAX;
      }
      done = smallest_.run(
          found_[0].first, [&](uint32_t candidate) { return number[group_[candidate]]; }, group_.get(), mark);
    }
    for (auto& limit : query.groups) limit.any = false;
    for (bool done = refill == 0; !done;) {
      smallest_.clear();
      smallest_.add(refill, query.most_second);
      done =
          smallest_.run(found_[0].second, [&](uint32_t c) { return group_[c] == mark ? -1 : 0; }, group_.get(), mark);
      query.most_second = UINT32_MAX;
      if (!done) find(query);
    }
  }

  int take_positives(const int64_t* target) {
    const int group = options_.positives(), most = options_.max_positives;
    if (count_.of[group] <= most) {
      take_all(group, kTakenPositive);
      return static_cast<int>(count_.of[group]);
    }
    if (most == 0) return 0;
    Query query;
    query.of_positives = true;
    if (options_.instance_balanced) {
      add_group(query, group, count_.of[group]);
      find(query);
      rounds_.deal(found_[0].first, target, most, group_.get(), kTakenPositive);
      take_last_round();
    } else {
      add_group(query, group, most);
      take_smallest(query, most, 0, kTakenPositive);
    }
    return most;
  }

  // The last round is one that not every target can give to: who does is random.
  void take_last_round() {
    const std::vector<uint32_t>& list = rounds_.last_round();
    std::vector<uint32_t> first(list.size()), second(list.size());
    random_words(list.data(), static_cast<int>(list.size()), {image_, inputs_.seed, true}, first.data(), second.data());
    std::vector<uint64_t> composites;
    for (size_t i = 0; i < list.size(); ++i) composites.push_back(composite(second[i], list[i]));
    smallest_.clear();
    smallest_.add(rounds_.last_round_quota(), UINT32_MAX);
    smallest_.run(composites, [](uint32_t) { return 0; }, group_.get(), kTakenPositive);
  }

  int take_negatives(int count) {
    const int64_t quota = count / options_.num_bins;
    int64_t taken = 0, rest = count_.of[options_.outside()];
    for (int bin = 0; bin < options_.num_bins; ++bin) {
      taken += std::min(count_.of[bin], quota);
      rest += std::max<int64_t>(0, count_.of[bin] - quota);
    }
    const int64_t refill = std::min(count - taken, rest);
    Query query;
    for (int group = 0; group <= options_.outside(); ++group) {  // the bins, and what is outside of them
      const int64_t of_group = group < options_.num_bins ? quota : 0;
      if (refill == rest || count_.of[group] <= of_group) {
        take_all(group, kTakenNegative);
      } else if (of_group > 0 || refill > 0) {
        add_group(query, group, of_group);
      }
    }
    if (refill < rest) {
      if (refill > 0) query.any_second = true, query.most_second = likely_limit(refill, rest);
      take_smallest(query, quota, refill, kTakenNegative);
    }
    return static_cast<int>(taken + refill + take_last_resort(count - taken - refill));
  }

  int64_t take_last_resort(int64_t count) {
    const int group = options_.last_resort();
    if (count_.of[group] <= count) {
      take_all(group, kTakenNegative);
      return count_.of[group];
    }
    if (count == 0) return 0;
    Query query;
    add_group(query, group, 0);
    query.any_second = true, query.most_second = likely_limit(count, count_.of[group]);
    take_smallest(query, 0, count, kTakenNegative);
    return count;
  }

  // Positives, then negatives, each in the order of the candidates, then padding.
  void write_samples(int positives, int negatives, int64_t* index, bool* valid, bool* positive) const {
    int64_t* next_positive = index;
    int64_t* next_negative = index + positives;
    for (int64_t i = 0; i < n_; i += kBlock) {
      int64_t positive_list[kBlock + 1], negative_list[kBlock + 1];  // written without a branch, so one place more
      int positive_count = 0, negative_count = 0;
      for (int64_t j = i; j < std::min(n_, i + kBlock); j += 8) {
        uint64_t eight;
        std::memcpy(&eight, group_.get() + j, 8);
        if ((eight & 0x8080808080808080u) == 0) continue;
        for (int64_t k = j; k < j + 8; ++k) {
          positive_list[positive_count] = negative_list[negative_count] = k;
          positive_count += group_[k] == kTakenPositive, negative_count += group_[k] == kTakenNegative;
        }
      }
      next_positive = std::copy_n(positive_list, positive_count, next_positive);
      next_negative = std::copy_n(negative_list, negative_count, next_negative);
    }
    const int drawn = positives + negatives;
    std::fill(index + drawn, index + options_.num_samples, 0);
    for (int s = 0; s < options_.num_samples; ++s) {
      valid[s] = s < drawn;
      positive[s] = s < positives;
    }
  }

  const SampleInputs& inputs_;
  const SampleOptions& options_;
  const ParallelFor threads_;
  const int64_t n_, parts_;
  uint32_t image_ = 0;
  std::unique_ptr<uint8_t[]> group_;  // [n, in whole blocks]: group, or that the candidate is taken
  GroupCounts count_;
  std::vector<Found> found_;  // of every part
  SmallestOfGroups smallest_;
  TargetRounds rounds_;
};

}  // namespace

void sample_iou_balanced(const SampleInputs& inputs, const SampleOptions& options, const SampleResults& results,
                         ParallelFor threads) {
  if (inputs.images == 0 || options.num_samples == 0) return;  // of images without samples there can be 2^31
  if (inputs.candidates > kPart) {
    Sampler sampler(inputs, options, threads);
    for (int64_t image = 0; image < inputs.images; ++image) sampler.draw(image, results);
    return;
  }
  const int64_t grain = kCandidatesPerJob / std::max<int64_t>(1, inputs.candidates) + 1;
  parallel_for(threads, inputs.images, grain, [&](int64_t begin, int64_t end) {
    Sampler sampler(inputs, options, one_thread);
    for (int64_t image = begin; image < end; ++image) sampler.draw(image, results);
  });
}

}  // namespace libra
