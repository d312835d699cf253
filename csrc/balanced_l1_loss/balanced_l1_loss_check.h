// What both backends of balanced_l1_loss check and allocate.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "balanced_l1_loss/balanced_l1_loss_math.h"
#include "common/allocate.h"
#include "common/tensor.h"

namespace libra {

struct BalancedL1Arguments {
  Tensor pred, target;           // contiguous, of one shape
  std::optional<Tensor> weight;  // contiguous, of the same shape
  Reduction reduction;
  bool per_box = false;  // `weight` is as it came: one number in memory for the four coordinates of each box

  static BalancedL1Arguments check(const Tensor& pred, const Tensor& target, const std::optional<Tensor>& weight,
                                   double alpha, double gamma, double beta, int64_t reduction,
                                   bool takes_per_box = false) {
    check_floating(pred, "pred");
    check_like(target, pred, "target");
    if (weight) check_like(*weight, pred, "weight");
    STD_TORCH_CHECK(alpha > 0 && gamma > 0 && beta > 0, "alpha, gamma, beta: expected positive numbers, got ", alpha,
                    ", ", gamma, ", ", beta);
    STD_TORCH_CHECK(gamma <= 80 * alpha, "gamma: expected at most 80 times alpha, got ", gamma, " and ", alpha);
    STD_TORCH_CHECK(std::max(std::expm1(gamma / alpha), 1.0) / beta < 3e38,
                    "beta: expected at least (e^(gamma / alpha) - 1) / 3e38 and 1 / 3e38, got alpha, gamma, beta ",
                    alpha, ", ", gamma, ", ", beta);
    STD_TORCH_CHECK(reduction >= 0 && reduction <= 2, "reduction: expected 0 none, 1 sum or 2 mean, got ", reduction);
    const uintptr_t bytes = pred.scalar_type() == ScalarType::Double ? 8 : 4;  // of an element
    BalancedL1Arguments arguments{make_contiguous(pred, bytes), make_contiguous(target, bytes), std::nullopt,
                                  static_cast<Reduction>(reduction)};
    arguments.per_box = takes_per_box && weight && is_per_box(*weight);
    if (weight) arguments.weight = arguments.per_box ? *weight : make_contiguous(*weight, bytes);
    return arguments;
  }

  // loss: pred's shape, or a scalar; gradient: pred's shape, or empty.
  std::tuple<Tensor, Tensor> outputs(bool with_gradient) const {
    const bool each = reduction == Reduction::kNone;
    return {make_empty(pred, each ? pred.sizes() : torch::headeronly::IntHeaderOnlyArrayRef{}),
            with_gradient ? make_empty(pred, pred.sizes()) : make_empty(pred, {0})};
  }

 private:
  // As weight[..., None] expands to.
  static bool is_per_box(const Tensor& weight) {
    const int64_t last = weight.dim() - 1;
    if (last < 0 || weight.size(last) != 4 || weight.stride(last) != 0) return false;
    int64_t boxes = 1;
    for (int64_t dim = last - 1; dim >= 0; --dim) {
      if (weight.size(dim) > 1 && weight.stride(dim) != boxes) return false;
      boxes *= weight.size(dim);
    }
    return true;
  }

  static void check_like(const Tensor& tensor, const Tensor& pred, const char* name) {
    check_dtype(tensor, pred.scalar_type(), name);
    check_same_device(tensor, pred, name);
    check_dim(tensor, pred.dim(), name);
    for (int64_t dim = 0; dim < pred.dim(); ++dim) check_size(tensor, dim, pred.size(dim), name);
  }
};

}  // namespace libra
