// sigmoid_focal_loss on torch tensors of the CPU: checks, allocates, and calls sigmoid_focal_loss_cpu_kernel.cpp.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "sigmoid_focal_loss/sigmoid_focal_loss_check.h"
#include "sigmoid_focal_loss/sigmoid_focal_loss_cpu_kernel.h"

namespace libra {
namespace {

template <class S>
void run(const FocalArguments& a, Tensor& loss, Tensor& gradient, double alpha, double gamma) {
  const FocalTensors<S> tensors{read<S>(a.logits),
                                read<int64_t>(a.labels),
                                a.mask ? read<uint8_t>(*a.mask) : nullptr,
                                write<Arithmetic<S>>(loss),
                                gradient.numel() ? write<S>(gradient) : nullptr,
                                a.rows,
                                a.classes};
  sigmoid_focal_loss(tensors, Focal<Arithmetic<S>>::make(alpha, gamma), a.reduction, torch_threads);
}

std::tuple<Tensor, Tensor> sigmoid_focal_loss_cpu(Tensor logits, Tensor labels, std::optional<Tensor> mask,
                                                  double alpha, double gamma, int64_t reduction, bool with_gradient) {
  const auto arguments = FocalArguments::check(logits, labels, mask, alpha, gamma, reduction);
  auto [loss, gradient] = arguments.outputs(with_gradient);
  switch (logits.scalar_type()) {
    case ScalarType::Double:
      run<double>(arguments, loss, gradient, alpha, gamma);
      break;
    case ScalarType::Half:
      run<Half>(arguments, loss, gradient, alpha, gamma);
      break;
    case ScalarType::BFloat16:
      run<BFloat16>(arguments, loss, gradient, alpha, gamma);
      break;
    default:
      run<float>(arguments, loss, gradient, alpha, gamma);
  }
  return {loss, gradient};
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CPU, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&libra::sigmoid_focal_loss_cpu));
}
