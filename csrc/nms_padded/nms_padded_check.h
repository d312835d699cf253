// What both backends of nms_padded check and allocate.
#pragma once

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>

#include "common/allocate.h"
#include "common/tensor.h"
#include "nms_padded/nms_padded_math.h"

namespace libra {

struct NmsArguments {
  Tensor boxes;                  // [B, N, 4] float32 contiguous
  Tensor scores;                 // [B, N] float32 contiguous
  std::optional<Tensor> groups;  // [B, N] int64 contiguous
  std::optional<Tensor> valid;   // [B, N] bool contiguous
  int64_t batch, slots;
  NmsRules rules;  // max_output: at most N

  static NmsArguments check(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& groups,
                            double iou_threshold, int64_t max_output, std::optional<double> score_threshold,
                            const std::optional<Tensor>& valid) {
    check_dtype(boxes, ScalarType::Float, "boxes");
    check_dim(boxes, 3, "boxes");
    check_size(boxes, 2, 4, "boxes");
    const int64_t slots = boxes.size(1);
    STD_TORCH_CHECK(slots <= std::numeric_limits<int32_t>::max(), "boxes: expected at most 2^31 - 1 of an image");
    STD_TORCH_CHECK(iou_threshold >= 0 && iou_threshold <= 1, "iou_threshold: expected in 0..1, got ", iou_threshold);
    STD_TORCH_CHECK(max_output >= 0, "max_output: expected at least 0, got ", max_output);
    check_like(scores, boxes, ScalarType::Float, "scores");
    if (groups) check_like(*groups, boxes, ScalarType::Long, "groups");
    if (valid) check_like(*valid, boxes, ScalarType::Bool, "valid");
    NmsArguments result{make_contiguous(boxes, 4),
                        make_contiguous(scores, 4),
                        std::nullopt,
                        std::nullopt,
                        boxes.size(0),
                        slots,
                        {IouBound::make(iou_threshold), static_cast<float>(score_threshold.value_or(0)),
                         score_threshold.has_value(), std::min(max_output, slots)}};
    if (groups) result.groups = make_contiguous(*groups, 8);
    if (valid) result.valid = make_contiguous(*valid, 1);
    return result;
  }

  // index and valid, [B, min(max_output, N)].
  std::tuple<Tensor, Tensor> outputs() const {
    return {make_empty(boxes, {batch, rules.max_output}, ScalarType::Long),
            make_empty(boxes, {batch, rules.max_output}, ScalarType::Bool)};
  }

 private:
  static void check_like(const Tensor& tensor, const Tensor& boxes, ScalarType dtype, const char* name) {
    check_dtype(tensor, dtype, name);
    check_same_device(tensor, boxes, name);
    check_dim(tensor, 2, name);
    check_size(tensor, 0, boxes.size(0), name);
    check_size(tensor, 1, boxes.size(1), name);
  }
};

}  // namespace libra
