// What both backends of balanced_l1_loss check and allocate.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "balanced_l1_loss/balanced_l1_loss_math.h"
#include "common/tensor.h"

namespace libra {

struct BalancedL1Arguments {
  Tensor pred, target;           // contiguous, of one shape
  std::optional<Tensor> weight;  // contiguous, of the same shape
  Reduction reduction;

  static BalancedL1Arguments check(const Tensor& pred, const Tensor& target, const std::optional<Tensor>& weight,
                                   double alpha, double gamma, double beta, int64_t reduction) {
    check_floating(pred, "pred");
    check_like(target, pred, "target");
    if (weight) check_like(*weight, pred, "weight");
    STD_TORCH_CHECK(alpha > 0 && gamma > 0 && beta > 0, "alpha, gamma, beta: expected positive numbers, got ", alpha,
                    ", ", gamma, ", ", beta);
    STD_TORCH_CHECK(std::max(std::expm1(gamma / alpha), 1.0) / beta < 3e38,
                    "beta: expected at least (e^(gamma / alpha) - 1) / 3e38 and 1 / 3e38, got alpha, gamma, beta ",
                    alpha, ", ", gamma, ", ", beta);
    STD_TORCH_CHECK(reduction >= 0 && reduction <= 2, "reduction: expected 0 none, 1 sum or 2 mean, got ", reduction);
    BalancedL1Arguments arguments{torch::stable::contiguous(pred), torch::stable::contiguous(target), std::nullopt,
                                  static_cast<Reduction>(reduction)};
    if (weight) arguments.weight = torch::stable::contiguous(*weight);
    return arguments;
  }

  // loss: pred's shape, or a scalar; gradient: pred's shape, or empty.
  std::tuple<Tensor, Tensor> outputs(bool with_gradient) const {
    const bool each = reduction == Reduction::kNone;
    return {torch::stable::new_empty(pred, each ? pred.sizes() : torch::headeronly::IntHeaderOnlyArrayRef{}),
            with_gradient ? torch::stable::new_empty(pred, pred.sizes()) : torch::stable::new_empty(pred, {0})};
  }

 private:
  static void check_like(const Tensor& tensor, const Tensor& pred, const char* name) {
    check_dtype(tensor, pred.scalar_type(), name);
    check_same_device(tensor, pred, name);
    check_dim(tensor, pred.dim(), name);
    for (int64_t dim = 0; dim < pred.dim(); ++dim) check_size(tensor, dim, pred.size(dim), name);
  }
};

}  // namespace libra
