// What both backends of sigmoid_focal_loss check and allocate.
#pragma once

#include <optional>
#include <tuple>

#include "common/allocate.h"
#include "common/reduction.h"
#include "common/tensor.h"

namespace libra {

struct FocalArguments {
  Tensor logits, labels;       // contiguous
  std::optional<Tensor> mask;  // contiguous
  Reduction reduction;
  int64_t rows, classes;

  static FocalArguments check(const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& mask,
                              double alpha, double gamma, int64_t reduction) {
    const ScalarType dtype = logits.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
                        dtype == ScalarType::BFloat16,
                    "logits: expected a floating dtype, got ", dtype);
    STD_TORCH_CHECK(logits.dim() >= 1, "logits: expected at least one dimension, got none");
    check_dtype(labels, ScalarType::Long, "labels");
    check_rows(labels, logits, "labels");
    if (mask) {
      check_dtype(*mask, ScalarType::Bool, "mask");
      check_rows(*mask, logits, "mask");
    }
    STD_TORCH_CHECK(alpha >= 0 && alpha <= 1, "alpha: expected a number >= 0 and <= 1, got ", alpha);
    STD_TORCH_CHECK(gamma >= 0 && gamma < 1e30, "gamma: expected a number >= 0 and below 1e30, got ", gamma);
    STD_TORCH_CHECK(reduction >= 0 && reduction <= 2, "reduction: expected 0 none, 1 sum or 2 mean, got ", reduction);
    const uintptr_t bytes = dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
    FocalArguments arguments{make_contiguous(logits, bytes),    make_contiguous(labels), std::nullopt,
                             static_cast<Reduction>(reduction), labels.numel(),          logits.size(logits.dim() - 1)};
    if (mask) arguments.mask = make_contiguous(*mask, 1);
    return arguments;
  }

  // loss: logits' shape, or a scalar, float64 for float64 and else float32; gradient: logits' shape and dtype, or
  // empty.
  std::tuple<Tensor, Tensor> outputs(bool with_gradient) const {
    const bool each = reduction == Reduction::kNone;
    const ScalarType dtype = logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    return {make_empty(logits, each ? logits.sizes() : torch::headeronly::IntHeaderOnlyArrayRef{}, dtype),
            with_gradient ? make_empty(logits, logits.sizes()) : make_empty(logits, {0})};
  }

 private:
  static void check_rows(const Tensor& tensor, const Tensor& logits, const char* name) {
    check_same_device(tensor, logits, name);
    check_dim(tensor, logits.dim() - 1, name);
    for (int64_t dim = 0; dim + 1 < logits.dim(); ++dim) check_size(tensor, dim, logits.size(dim), name);
  }
};

}  // namespace libra
