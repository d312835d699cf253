// match_boxes on the CPU, for whoever has pointers: the torch and the NumPy side call it.
#pragma once

#include "common/parallel.h"
#include "match_boxes/match_boxes_math.h"

namespace libra {

struct MatchInputs {
  const Box<float>* boxes;    // [batch, boxes_per_image], or [boxes_per_image] with shared_boxes
  const Box<float>* targets;  // [batch, targets_per_image]; at most 2^31 - 1 per image
  const uint8_t* valid;       // [batch, targets_per_image]: bools, of which some makers fill more than the last bit
  const Box<float>* crowd;    // [batch, crowd_per_image]; may be null if that is 0
  int64_t batch, boxes_per_image, targets_per_image, crowd_per_image;
  bool shared_boxes;
  MatchRules rules;
};

// [batch, boxes_per_image] each; every element is written.
struct MatchResults {
  int64_t* index;
  float* iou;
  signed char* state;
};

void match_boxes(const MatchInputs& inputs, const MatchResults& results, ParallelFor threads);

}  // namespace libra
