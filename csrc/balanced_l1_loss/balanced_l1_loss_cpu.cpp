// balanced_l1_loss on torch tensors of the CPU: checks, allocates, and calls balanced_l1_loss_cpu_kernel.cpp.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "balanced_l1_loss/balanced_l1_loss_check.h"
#include "balanced_l1_loss/balanced_l1_loss_cpu_kernel.h"

namespace libra {
namespace {

template <class T>
void run(const BalancedL1Arguments& a, Tensor& loss, Tensor& gradient, const BalancedL1<T>& constants) {
  balanced_l1_loss(read<T>(a.pred), read<T>(a.target), a.weight ? read<T>(*a.weight) : nullptr, write<T>(loss),
                   gradient.numel() ? write<T>(gradient) : nullptr, a.pred.numel(), constants, a.reduction,
                   torch_threads);
}

std::tuple<Tensor, Tensor> balanced_l1_loss_cpu(Tensor pred, Tensor target, std::optional<Tensor> weight, double alpha,
                                                double gamma, double beta, bool published, int64_t reduction,
                                                bool with_gradient) {
  const auto arguments = BalancedL1Arguments::check(pred, target, weight, alpha, gamma, beta, reduction);
  auto [loss, gradient] = arguments.outputs(with_gradient);
  if (pred.scalar_type() == ScalarType::Float) {
    run(arguments, loss, gradient, BalancedL1<float>::make(alpha, gamma, beta, published));
  } else {
    run(arguments, loss, gradient, BalancedL1<double>::make(alpha, gamma, beta, published));
  }
  return {loss, gradient};
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CPU, m) { m.impl("balanced_l1_loss", TORCH_BOX(&libra::balanced_l1_loss_cpu)); }
