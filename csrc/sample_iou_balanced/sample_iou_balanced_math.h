// What the CPU and the GPU share of IoU-balanced sampling (Libra R-CNN, section 3.1): which group a candidate belongs
// to, how many negatives an image gets, and what each random word of a candidate is for.
//
// Whoever is drawn is drawn by the smallest random word; equal words go by index. So a draw of q from a group is its q
// smallest composites (word << 32 | index), and the result depends on neither the order of threads nor the device.
#pragma once

#include <cstdint>

#include "common/philox.h"

namespace libra {

constexpr int kMaxBins = 64;
constexpr int64_t kMaxCandidates = int64_t(1) << 30;  // of an image; indices are 32 bits wide inside, and leave room

// Which word of a candidate's Philox orders what.
enum SampleWord { kBinWord = 0, kRefillWord = 1, kPositiveWord = 2, kLastRoundWord = 3 };

struct SampleOptions {
  int num_samples, max_positives, num_bins;
  double low, high;                   // the interval that the bins split ("published": not used)
  double max_negatives_per_positive;  // negative: no limit
  bool instance_balanced, published;

  // Groups 0..num_bins-1 are the bins; the others follow in this order.
  LIBRA_HOST_DEVICE int outside() const { return num_bins; }          // negatives that no bin holds: refill only
  LIBRA_HOST_DEVICE int last_resort() const { return num_bins + 1; }  // negatives drawn when all others ran out
  LIBRA_HOST_DEVICE int positives() const { return num_bins + 2; }
  LIBRA_HOST_DEVICE int ignored() const { return num_bins + 3; }
  LIBRA_HOST_DEVICE int groups() const { return num_bins + 4; }
};
constexpr int kMaxGroups = kMaxBins + 4;

// What stands in place of the group once a candidate is taken; groups are below 0x80.
constexpr uint8_t kTakenNegative = 0x80, kTakenPositive = 0x81;

// Edge k of num_bins equal, half-open bins over [low, high).
LIBRA_HOST_DEVICE float bin_edge(double low, double high, int num_bins, int k) {
  return static_cast<float>(low + k * (high - low) / num_bins);
}

// The group of a candidate. bin: how many of the edges 1..num_bins-1 its IoU reaches; first, last: the outer edges.
// Branchless, so that a loop over candidates becomes vector code.
LIBRA_HOST_DEVICE int candidate_group(int bin, float iou, int state, float first, float last,
                                      const SampleOptions& options) {
  const bool outside = !(iou >= first) | (iou >= last);  // a NaN too
  int group = (options.num_bins > 1) & outside ? options.outside() : bin;
  group = options.published & (iou <= 0.0f) ? options.last_resort() : group;
  group = state == 0 ? group : options.ignored();
  return state == 1 ? options.positives() : group;
}

// Negatives asked for, beside so many positives.
LIBRA_HOST_DEVICE int negative_count(int positives, const SampleOptions& options) {
  const int count = options.num_samples - positives;
  if (options.max_negatives_per_positive < 0) return count;
  // 1.15 * 100 is 114.99999999999999
  const double most = options.max_negatives_per_positive * (positives > 1 ? positives : 1) + 1e-6;
  return most < count ? static_cast<int>(most) : count;
}

LIBRA_HOST_DEVICE uint64_t composite(uint32_t key, uint32_t index) { return uint64_t(key) << 32 | index; }

}  // namespace libra
