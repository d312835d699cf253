// What both backends of match_boxes check and allocate.
#pragma once

#include <limits>
#include <optional>

#include "common/allocate.h"
#include "common/tensor.h"
#include "match_boxes/match_boxes_math.h"

namespace libra {

struct MatchOutputs {
  Tensor index, iou, state;  // [B, N] int64, float32, int8
};

struct MatchArguments {
  Tensor boxes;                 // [B, N, 4] float32 contiguous, or [1, N, 4] shared by all images
  Tensor targets;               // [B, G, 4] float32 contiguous
  Tensor valid;                 // [B, G] bool contiguous
  std::optional<Tensor> crowd;  // [B, C, 4] float32 contiguous; a region without area is padding
  int64_t batch, boxes_per_image, targets_per_image, crowd_per_image;
  bool shared_boxes;
  MatchRules rules;

  static MatchArguments check(const Tensor& boxes, const Tensor& targets, const Tensor& valid,
                              const std::optional<Tensor>& crowd, double positive_iou, double negative_iou,
                              std::optional<double> min_positive_iou) {
    check_boxes(boxes, "boxes");
    check_boxes(targets, "targets");
    check_dtype(valid, ScalarType::Bool, "valid");
    check_dim(valid, 2, "valid");
    check_same_device(targets, boxes, "targets");
    check_same_device(valid, boxes, "valid");
    const int64_t batch = targets.size(0), count = targets.size(1);
    STD_TORCH_CHECK(boxes.size(0) == batch || boxes.size(0) == 1, "boxes: expected batch size ", batch, " or 1, got ",
                    boxes.size(0));
    check_size(valid, 0, batch, "valid");
    check_size(valid, 1, count, "valid");
    STD_TORCH_CHECK(count <= std::numeric_limits<int32_t>::max(), "targets: expected at most 2^31 - 1 per image");
    MatchArguments result{make_contiguous(boxes, 4),
                          make_contiguous(targets, 4),
                          make_contiguous(valid, 1),
                          std::nullopt,
                          batch,
                          boxes.size(1),
                          count,
                          0,
                          boxes.size(0) != batch,
                          {static_cast<float>(positive_iou), static_cast<float>(negative_iou),
                           static_cast<float>(min_positive_iou.value_or(0)), min_positive_iou.has_value()}};
    if (crowd) {
      check_boxes(*crowd, "crowd");
      check_size(*crowd, 0, batch, "crowd");
      check_same_device(*crowd, boxes, "crowd");
      result.crowd = make_contiguous(*crowd, 4);
      result.crowd_per_image = crowd->size(1);
    }
    return result;
  }

  MatchOutputs outputs() const {
    return {make_empty(boxes, {batch, boxes_per_image}, ScalarType::Long),
            make_empty(boxes, {batch, boxes_per_image}, ScalarType::Float),
            make_empty(boxes, {batch, boxes_per_image}, ScalarType::Char)};
  }

 private:
  static void check_boxes(const Tensor& tensor, const char* name) {
    check_dtype(tensor, ScalarType::Float, name);
    check_dim(tensor, 3, name);
    check_size(tensor, 2, 4, name);
  }
};

}  // namespace libra
