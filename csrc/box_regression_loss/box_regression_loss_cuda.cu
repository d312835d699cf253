// box_regression_loss on the GPU: check, allocate, launch, register.
#include <torch/csrc/stable/library.h>

#include "box_regression_loss/box_regression_loss_check.h"
#include "box_regression_loss/box_regression_loss_kernel.cuh"
#include "common/cuda_launch.h"
#include "common/launch_ticket.h"

namespace libra {
namespace {

LaunchTickets tickets(kSumTickets);

template <class T>
void run(const BoxLossArguments& a, Tensor& loss, Tensor& gradient, Tensor& target_gradient) {
  const bool each = a.reduction == Reduction::kNone;
  const int blocks = box_loss_blocks(a.n), device = a.pred.get_device_index();
  const cudaStream_t stream = current_stream(a.pred);
  const auto optional = [](const std::optional<Tensor>& tensor) { return tensor ? read<T>(*tensor) : nullptr; };
  const auto result = [](Tensor& tensor) { return tensor.numel() ? write<T>(tensor) : nullptr; };
  const BoxLossArrays<T> arrays{read<T>(a.pred),
                                read<T>(a.target),
                                optional(a.weight),
                                optional(a.references),
                                a.reference_count,
                                optional(a.stds),
                                each ? write<T>(loss) : nullptr,
                                result(gradient),
                                result(target_gradient),
                                a.n};
  std::optional<Tensor> partial;  // freed before the kernel ends: the next user of its memory comes after it
  int ticket = -1;
  if (!each && blocks > 1) {
    partial = make_empty(a.pred, {blocks + 1}, ScalarType::Double);
    ticket = tickets.take(device, stream);
  }
  check_launch(launch_box_regression_loss<T>(a.kind, arrays, each ? nullptr : write<T>(loss),
                                             partial ? write<double>(*partial) : nullptr, ticket, a.reduction, stream),
               "box_regression_loss");
}

std::tuple<Tensor, Tensor, Tensor> box_regression_loss_cuda(Tensor pred, Tensor target, std::optional<Tensor> weight,
                                                            std::optional<Tensor> references,
                                                            std::optional<Tensor> stds, int64_t kind, int64_t reduction,
                                                            bool with_gradient, bool with_target_gradient) {
  const torch::stable::accelerator::DeviceGuard guard(pred.get_device_index());
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

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CUDA, m) {
  m.impl("box_regression_loss", TORCH_BOX(&libra::box_regression_loss_cuda));
}
