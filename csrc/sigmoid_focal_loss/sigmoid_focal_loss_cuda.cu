// sigmoid_focal_loss on the GPU: check, allocate, launch, register.
#include <torch/csrc/stable/library.h>

#include "common/cuda_launch.h"
#include "common/launch_ticket.h"
#include "sigmoid_focal_loss/sigmoid_focal_loss_check.h"
#include "sigmoid_focal_loss/sigmoid_focal_loss_kernel.cuh"

namespace libra {
namespace {

LaunchTickets tickets(kSumTickets);

template <class S, class T>
void run(const FocalArguments& a, Tensor& loss, Tensor& gradient, double alpha, double gamma) {
  const int64_t n = a.rows * a.classes;
  const bool each = a.reduction == Reduction::kNone;
  const int blocks = focal_blocks(n, sizeof(S)), device = a.logits.get_device_index();
  const cudaStream_t stream = current_stream(a.logits);
  const FocalArrays<S, T> arrays{read<S>(a.logits),
                                 read<int64_t>(a.labels),
                                 a.mask ? read<uint8_t>(*a.mask) : nullptr,
                                 each ? write<T>(loss) : nullptr,
                                 gradient.numel() ? write<S>(gradient) : nullptr,
                                 n,
                                 a.classes};
  std::optional<Tensor> partial;  // freed before the kernel ends: the next user of its memory comes after it
  int ticket = -1;
  if (!each && blocks > 1) {
    partial = make_empty(a.logits, {blocks + 1}, ScalarType::Double);
    ticket = tickets.take(device, stream);
  }
  check_launch(launch_sigmoid_focal_loss<S, T>(
                   arrays, each ? nullptr : write<T>(loss), partial ? write<double>(*partial) : nullptr, ticket,
                   Focal<T>::make(alpha, gamma), a.reduction, a.logits.scalar_type() == ScalarType::Half, stream),
               "sigmoid_focal_loss");
}

std::tuple<Tensor, Tensor> sigmoid_focal_loss_cuda(Tensor logits, Tensor labels, std::optional<Tensor> mask,
                                                   double alpha, double gamma, int64_t reduction, bool with_gradient) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const auto arguments = FocalArguments::check(logits, labels, mask, alpha, gamma, reduction);
  auto [loss, gradient] = arguments.outputs(with_gradient);
  switch (logits.scalar_type()) {
    case ScalarType::Double:
      run<double, double>(arguments, loss, gradient, alpha, gamma);
      break;
    case ScalarType::Half:
      run<__half, float>(arguments, loss, gradient, alpha, gamma);
      break;
    case ScalarType::BFloat16:
      run<__nv_bfloat16, float>(arguments, loss, gradient, alpha, gamma);
      break;
    default:
      run<float, float>(arguments, loss, gradient, alpha, gamma);
  }
  return {loss, gradient};
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CUDA, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&libra::sigmoid_focal_loss_cuda));
}
