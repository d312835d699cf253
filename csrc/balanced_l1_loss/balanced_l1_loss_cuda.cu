// balanced_l1_loss on the GPU: check, allocate, launch, register.
#include <torch/csrc/stable/library.h>

#include "balanced_l1_loss/balanced_l1_loss_check.h"
#include "balanced_l1_loss/balanced_l1_loss_kernel.cuh"
#include "common/cuda_launch.h"
#include "common/launch_ticket.h"

namespace libra {
namespace {

LaunchTickets tickets(kSumTickets);

template <class T>
void run(const BalancedL1Arguments& arguments, Tensor& loss, Tensor& gradient, const BalancedL1<T>& constants) {
  const int64_t n = arguments.pred.numel();
  const bool each = arguments.reduction == Reduction::kNone;
  const int blocks = balanced_l1_blocks(n, sizeof(T)), device = arguments.pred.get_device_index();
  const cudaStream_t stream = current_stream(arguments.pred);
  const LossTensors<T> tensors{
      read<T>(arguments.pred), read<T>(arguments.target),       arguments.weight ? read<T>(*arguments.weight) : nullptr,
      arguments.per_box,       each ? write<T>(loss) : nullptr, gradient.numel() ? write<T>(gradient) : nullptr};
  std::optional<Tensor> partial;  // freed before the kernel ends: the next user of its memory comes after it
  int ticket = -1;
  if (!each && blocks > 1) {
    partial = make_empty(arguments.pred, {blocks + 1}, ScalarType::Double);
    ticket = tickets.take(device, stream);
  }
  check_launch(
      launch_balanced_l1_loss<T>(tensors, each ? nullptr : write<T>(loss), partial ? write<double>(*partial) : nullptr,
                                 ticket, n, constants, arguments.reduction, stream),
      "balanced_l1_loss");
}

std::tuple<Tensor, Tensor> balanced_l1_loss_cuda(Tensor pred, Tensor target, std::optional<Tensor> weight, double alpha,
                                                 double gamma, double beta, bool published, int64_t reduction,
                                                 bool with_gradient) {
  const torch::stable::accelerator::DeviceGuard guard(pred.get_device_index());
  const auto arguments =
      BalancedL1Arguments::check(pred, target, weight, alpha, gamma, beta, reduction, /*takes_per_box=*/true);
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

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CUDA, m) { m.impl("balanced_l1_loss", TORCH_BOX(&libra::balanced_l1_loss_cuda)); }
