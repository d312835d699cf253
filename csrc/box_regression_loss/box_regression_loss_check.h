// What both backends of box_regression_loss check and allocate.
#pragma once

#include <optional>
#include <tuple>

#include "box_iou/box_iou_math.h"
#include "common/allocate.h"
#include "common/reduction.h"
#include "common/tensor.h"

namespace libra {

struct BoxLossArguments {
  Tensor pred, target;                             // contiguous
  std::optional<Tensor> weight, references, stds;  // contiguous
  Kind kind;
  Reduction reduction;
  int64_t n, reference_count;

  static BoxLossArguments check(const Tensor& pred, const Tensor& target, const std::optional<Tensor>& weight,
                                const std::optional<Tensor>& references, const std::optional<Tensor>& stds,
                                int64_t kind, int64_t reduction) {
    check_floating(pred, "pred");
    STD_TORCH_CHECK(pred.dim() >= 1, "pred: expected shape [..., 4], got no dimension");
    const int64_t last = pred.dim() - 1;
    check_size(pred, last, 4, "pred");
    check_like(target, pred, pred.dim(), "target");
    check_size(target, last, 4, "target");
    if (weight) check_like(*weight, pred, last, "weight");
    STD_TORCH_CHECK(kind == 0 || (kind >= 2 && kind <= 4), "kind: expected 0 iou, 2 giou, 3 diou or 4 ciou, got ",
                    kind);
    STD_TORCH_CHECK(reduction >= 0 && reduction <= 2, "reduction: expected 0 none, 1 sum or 2 mean, got ", reduction);
    const uintptr_t bytes = pred.scalar_type() == ScalarType::Double ? 8 : 4;  // of an element
    BoxLossArguments arguments{make_contiguous(pred, bytes),
                               make_contiguous(target, bytes),
                               std::nullopt,
                               std::nullopt,
                               std::nullopt,
                               static_cast<Kind>(kind),
                               static_cast<Reduction>(reduction),
                               pred.numel() / 4,
                               0};
    if (weight) arguments.weight = make_contiguous(*weight, bytes);
    if (references) {
      check_dtype(*references, pred.scalar_type(), "references");
      check_same_device(*references, pred, "references");
      STD_TORCH_CHECK(references->dim() >= 1, "references: expected shape [..., 4], got no dimension");
      check_size(*references, references->dim() - 1, 4, "references");
      arguments.reference_count = references->numel() / 4;
      STD_TORCH_CHECK(
          arguments.n == 0 || (arguments.reference_count > 0 && arguments.n % arguments.reference_count == 0),
          "references: expected a number of boxes that divides pred's ", arguments.n, ", got ",
          arguments.reference_count);
      arguments.references = make_contiguous(*references, bytes);
    }
    if (stds) {
      check_dtype(*stds, pred.scalar_type(), "delta_stds");
      check_same_device(*stds, pred, "delta_stds");
      check_dim(*stds, 1, "delta_stds");
      check_size(*stds, 0, 4, "delta_stds");
      STD_TORCH_CHECK(references.has_value(), "delta_stds: expected references beside it");
      arguments.stds = make_contiguous(*stds, bytes);
    }
    return arguments;
  }

  // loss: one element for each pair, or a scalar; the gradients: pred's shape, or empty.
  std::tuple<Tensor, Tensor, Tensor> outputs(bool with_gradient, bool with_target_gradient) const {
    const auto sizes = pred.sizes();
    const bool each = reduction == Reduction::kNone;
    const torch::headeronly::IntHeaderOnlyArrayRef slots(sizes.data(), each ? sizes.size() - 1 : 0);
    return {make_empty(pred, slots), with_gradient ? make_empty(pred, sizes) : make_empty(pred, {0}),
            with_target_gradient ? make_empty(pred, sizes) : make_empty(pred, {0})};
  }

 private:
  static void check_like(const Tensor& tensor, const Tensor& pred, int64_t dims, const char* name) {
    check_dtype(tensor, pred.scalar_type(), name);
    check_same_device(tensor, pred, name);
    check_dim(tensor, dims, name);
    for (int64_t dim = 0; dim < dims; ++dim) check_size(tensor, dim, pred.size(dim), name);
  }
};

}  // namespace libra
