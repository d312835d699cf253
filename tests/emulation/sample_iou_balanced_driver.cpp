// The GPU's sample_iou_balanced in the emulation: the launch function of sample_iou_balanced_cuda.cu.
#include "sample_iou_balanced/sample_iou_balanced_kernel.cuh"

extern "C" int64_t sample_items() { return libra::kItems; }
extern "C" int64_t sample_max_listed_samples() { return libra::kMaxListedSamples; }
extern "C" int64_t sample_chunks(int64_t candidates) { return libra::SampleShape::make(candidates).chunks; }
extern "C" int64_t sample_max_groups() { return libra::kMaxGroups; }

// items may be null where positives are random. max_negatives_per_positive < 0: no limit.
extern "C" int run_sample_iou_balanced(const int64_t* target, const float* iou, const int8_t* state,
                                       const int64_t* seed, int64_t images, int64_t candidates, int64_t num_samples,
                                       int64_t max_positives, int64_t num_bins, double low, double high,
                                       double max_negatives_per_positive, int64_t instance_balanced, int64_t published,
                                       uint8_t* group, uint32_t* word, libra::SortItem* items, float* highest,
                                       uint32_t* counts, uint64_t* list, uint32_t* length, int64_t* index, bool* valid,
                                       bool* positive) {
  const libra::SampleOptions options{int(num_samples),           int(max_positives),     int(num_bins), low, high,
                                     max_negatives_per_positive, instance_balanced != 0, published != 0};
  return libra::launch_sample_iou_balanced({target, iou, state, seed}, images, candidates, options,
                                           {group, word, items, highest, counts, list, length},
                                           {index, valid, positive}, nullptr);
}
