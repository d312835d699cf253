// sample_iou_balanced on the CPU, for whoever has pointers: the torch and the NumPy side call it.
#pragma once

#include "common/parallel.h"
#include "sample_iou_balanced/sample_iou_balanced_math.h"

namespace libra {

// [images, candidates] each
struct SampleInputs {
  const int64_t* index;
  const float* iou;
  const signed char* state;
  uint64_t seed;
  int64_t images, candidates;
};

// [images, num_samples] each; every element is written.
struct SampleResults {
  int64_t* index;
  bool* valid;
  bool* positive;
};

void sample_iou_balanced(const SampleInputs& inputs, const SampleOptions& options, const SampleResults& results,
                         ParallelFor threads);

}  // namespace libra
