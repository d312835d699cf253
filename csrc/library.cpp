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

  // gradient is that of the reduced loss with respect to pred; empty unless with_gradient.
  m.def(
      "balanced_l1_loss(Tensor pred, Tensor target, Tensor? weight, float alpha, float gamma, float beta, "
      "bool published, int reduction, bool with_gradient) -> (Tensor loss, Tensor gradient)");

  // gradient is that of the reduced loss, in logits' dtype; empty unless with_gradient. That of float16 is of the summed
  // loss and 1024 times larger.
  m.def(
      "sigmoid_focal_loss(Tensor logits, Tensor labels, Tensor? mask, float alpha, float gamma, int reduction, "
      "bool with_gradient) -> (Tensor loss, Tensor gradient)");

  // The gradients are those of the reduced loss; empty unless with_gradient and with_target_gradient.
  m.def(
      "box_regression_loss(Tensor pred, Tensor target, Tensor? weight, Tensor? references, Tensor? delta_stds, int kind, "
      "int reduction, bool with_gradient, bool with_target_gradient) "
      "-> (Tensor loss, Tensor gradient, Tensor target_gradient)");
}

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CompositeExplicitAutograd, m) { m.impl("build_info", TORCH_BOX(&build_info)); }
