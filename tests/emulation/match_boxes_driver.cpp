// The GPU's match_boxes in the emulation: the launch function of match_boxes_cuda.cu, with one or four boxes a thread.
#include "match_boxes/match_boxes_kernel.cuh"

using libra::Box;
using libra::MatchShape;

extern "C" int64_t match_boxes_tops(int64_t batch, int64_t boxes, int64_t targets, int64_t each) {
  return MatchShape::make(batch, boxes, targets, 0, false, each).tops();
}

extern "C" int64_t boxes_per_thread(int64_t batch, int64_t boxes) {
  return MatchShape::choose_boxes_per_thread(batch, boxes);
}

extern "C" int run_match_boxes(const Box<float>* boxes, const Box<float>* targets, const uint8_t* valid,
                               const Box<float>* crowd, int64_t* index, float* iou, signed char* state, unsigned* tops,
                               int64_t batch, int64_t box_count, int64_t target_count, int64_t crowd_count,
                               int64_t shared, int64_t each, double positive_iou, double negative_iou,
                               double min_positive_iou, int64_t low_quality) {
  const libra::MatchRules rules{static_cast<float>(positive_iou), static_cast<float>(negative_iou),
                                static_cast<float>(min_positive_iou), low_quality != 0};
  const MatchShape shape = MatchShape::make(batch, box_count, target_count, crowd_count, shared != 0, each);
  return libra::launch_match_boxes({boxes, targets, crowd, valid, index, iou, state, tops}, shape, rules, nullptr);
}
