// Every operation's schema, and nothing else. Shapes, dtypes and meaning: the public functions in libra_ops/*.py.
#include <torch/csrc/stable/library.h>

#include <string>

#include "build_facts.h"

std::string build_info() { return LIBRA_BUILD_FACTS; }

STABLE_TORCH_LIBRARY(libra_ops, m) {
  m.def("build_info() -> str");

  m.def("box_iou(Tensor boxes1, Tensor boxes2, int kind) -> Tensor");
  m.def("box_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2, int kind) -> (Tensor, Tensor)");

  m.def(
      "match_boxes(Tensor boxes, Tensor targets, Tensor valid, Tensor? crowd, float positive_iou, float negative_iou, "
      "float? min_positive_iou) -> (Tensor index, Tensor iou, Tensor state)");

  m.def(
      "sample_iou_balanced(Tensor index, Tensor iou, Tensor state, Tensor seed, int num_samples, int max_positives, "
      "int num_bins, float low, float high, float? max_negatives_per_positive, bool instance_balanced, bool published) "
      "-> (Tensor index, Tensor valid, Tensor positive)");

  m.def(
      "nms_padded(Tensor boxes, Tensor scores, Tensor? groups, float iou_threshold, int max_output, "
      "float? score_threshold, Tensor? valid) -> (Tensor index, Tensor valid)");

  // delta_stds: 4 numbers.
  m.def(
      "encode_boxes(Tensor references, Tensor targets, Tensor? index, Tensor? target_index, float[] delta_stds) -> "
      "Tensor");
  m.def("decode_boxes(Tensor references, Tensor deltas, Tensor? index, float[] delta_stds, Tensor? sizes) -> Tensor");
  m.def(
      "decode_boxes_backward(Tensor grad, Tensor references, Tensor deltas, Tensor? index, float[] delta_stds, Tensor? "
      "sizes) -> "
      "Tensor");

  m.def("topk_per_level(Tensor scores, int[] level_sizes, int k, float? threshold) -> (Tensor values, Tensor index)");

  // gradient is that of the reduced loss with respect to pred; empty unless with_gradient.
  m.def(
      "balanced_l1_loss(Tensor pred, Tensor target, Tensor? weight, float alpha, float gamma, float beta, "
      "bool published, int reduction, bool with_gradient) -> (Tensor loss, Tensor gradient)");

  // gradient is that of the reduced loss, in logits' dtype; empty unless with_gradient. That of float16 is of the
  // summed loss and 1024 times larger.
  m.def(
      "sigmoid_focal_loss(Tensor logits, Tensor labels, Tensor? mask, float alpha, float gamma, int reduction, "
      "bool with_gradient) -> (Tensor loss, Tensor gradient)");

  // index: where the largest value of each window lay; index_bytes of an element are 0 (it is not wanted), 1 or 4.
  m.def(
      "integrate_pyramid(Tensor[] features, int level, bool channels_last, int index_bytes) "
      "-> (Tensor mean, Tensor index)");
  m.def(
      "integrate_pyramid_backward(Tensor grad, Tensor index, SymInt[] heights, SymInt[] widths, int level, "
      "bool channels_last) -> Tensor[]");
  m.def(
      "scatter_pyramid(Tensor[] features, Tensor refined, int level, bool channels_last, int index_bytes) "
      "-> (Tensor[] outputs, Tensor index)");
  m.def("scatter_pyramid_backward(Tensor[] grads, Tensor index, int level, bool channels_last) -> Tensor");

  m.def(
      "multiscale_roi_align(Tensor[] features, Tensor boxes, Tensor? valid, float[] strides, int output_size, "
      "int sampling_ratio, float finest_scale) -> Tensor");
  // A gradient for each map that is wanted.
  m.def(
      "multiscale_roi_align_backward(Tensor grad, Tensor boxes, Tensor? valid, SymInt[] heights, SymInt[] widths, "
      "bool[] channels_last, bool[] wanted, float[] strides, int output_size, int sampling_ratio, float finest_scale) "
      "-> Tensor[]");

  // The gradients are those of the reduced loss; empty unless with_gradient and with_target_gradient.
  m.def(
      "box_regression_loss(Tensor pred, Tensor target, Tensor? weight, Tensor? references, Tensor? delta_stds, int "
      "kind, "
      "int reduction, bool with_gradient, bool with_target_gradient) "
      "-> (Tensor loss, Tensor gradient, Tensor target_gradient)");
}

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CompositeExplicitAutograd, m) { m.impl("build_info", TORCH_BOX(&build_info)); }
