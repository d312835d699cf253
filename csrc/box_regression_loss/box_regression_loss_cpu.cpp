// box_regression_loss on torch tensors of the CPU: checks, allocates, and calls box_regression_loss_cpu_kernel.cpp.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "box_regression_loss/box_regression_loss_check.h"
#include "box_regression_loss/box_regression_loss_cpu_kernel.h"

namespace libra {
namespace {

template <class T>
void run(const BoxLossArguments& a, Tensor& loss, Tensor& gradient, Tensor& target_gradient) {
  const auto boxes = [](const Tensor& tensor) { return static_cast<const Box<T>*>(tensor.const_data_ptr()); };
  const auto result = [](Tensor& tensor) {
    return tensor.numel() ? static_cast<Box<T>*>(tensor.mutable_data_ptr()) : nullptr;
  };
  const BoxLossTensors<T> tensors{boxes(a.pred),
                                  boxes(a.target),
                                  a.weight ? read<T>(*a.weight) : nullptr,
                                  a.references ? boxes(*a.references) : nullptr,
                                  a.reference_count,
                                  a.stds ? read<T>(*a.stds) : nullptr,
                                  write<T>(loss),
                                  result(gradient),
                                  result(target_gradient),
                                  a.n};
  box_regression_loss(a.kind, tensors, a.reduction, torch_threads);
}

std::tuple<Tensor, Tensor, Tensor> box_regression_loss_cpu(Tensor pred, Tensor target, std::optional<Tensor> weight,
                                                           std::optional<Tensor> references, std::optional<Tensor> stds,
                                                           int64_t kind, int64_t reduction, bool with_gradient,
                                                           bool with_target_gradient) {
  const auto arguments = BoxLossArguments::check(pred, target, weight, references, stds, kind, reduction);
  auto [loss, gradient, target_gradient] = arguments.outputs(with_gradient, with_target_gradient);
  if (pred.scalar_type() == ScalarType::Float) {
    run<float>(arguments, loss, gradient, target_gradient);
  } else {
    run<double>(arguments, loss, gradient, target_gradient);
  }
  return {loss, gradient, target_gradient};
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CPU, m) {
  m.impl("box_regression_loss", TORCH_BOX(&libra::box_regression_loss_cpu));
}
