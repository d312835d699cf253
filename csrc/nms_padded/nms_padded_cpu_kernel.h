// nms_padded on the CPU, for whoever has pointers.
#pragma once

#include "common/parallel.h"
#include "nms_padded/nms_padded_math.h"

namespace libra {

struct NmsInputs {
  const Box<float>* boxes;  // [batch, slots]; at most 2^31 - 1 of an image
  const float* scores;      // [batch, slots]
  const int64_t* groups;    // [batch, slots], or null: one group
  const uint8_t* valid;     // [batch, slots], or null: all; bools, of which some makers fill more than the last bit
  int64_t batch, slots;
};

// [batch, rules.max_output] each; every element is written.
struct NmsResults {
  int64_t* index;
  bool* valid;
};

void nms_padded(const NmsInputs& inputs, const NmsRules& rules, const NmsResults& results, ParallelFor threads);

}  // namespace libra
