// The GPU's match_boxes in the emulation: the launch function of match_boxes_cuda.cu.
#include "match_boxes/match_boxes_kernel.cuh"

namespace {

libra::MatchShape shape_of(int64_t batch, int64_t boxes, int64_t targets, int64_t crowd, int64_t shared) {
  return libra::MatchShape::make(batch, boxes, targets, crowd, shared != 0);
}

}  // namespace

extern "C" int64_t match_boxes_tops(int64_t batch, int64_t boxes, int64_t targets) {
  return batch * shape_of(batch, boxes, targets, 0, 0).chunks * targets;
}

extern "C" int run_match_boxes(const float* boxes, const float* targets, const bool* valid, const float* crowd,
                               int64_t* index, float* iou, signed char* state, unsigned* tops, int64_t batch,
                               int64_t box_count, int64_t target_count, int64_t crowd_count, int64_t shared,
                               double positive_iou, double negative_iou, double min_positive_iou, int64_t low_quality) {
  const libra::MatchRules rules{static_cast<float>(positive_iou), static_cast<float>(negative_iou),
                                static_cast<float>(min_positive_iou), low_quality != 0};
  return libra::launch_match_boxes(boxes, targets, valid, crowd, index, iou, state, tops,
                                   shape_of(batch, box_count, target_count, crowd_count, shared), rules, nullptr);
}
