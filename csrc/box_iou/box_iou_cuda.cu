// box_iou and its backward on the GPU: check, allocate, launch, register.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "box_iou/box_iou_check.h"
#include "box_iou/box_iou_kernel.cuh"
#include "common/cuda_launch.h"

namespace libra {
namespace {

template <class T>
void run(const BoxIouArguments& arguments, Tensor& out) {
  check_launch(launch_box_iou<T>(arguments.kind, read<T>(arguments.boxes1), read<T>(arguments.boxes2), write<T>(out),
                                 arguments.batch, arguments.n, arguments.m, current_stream(out)),
               "box_iou");
}

template <class T>
void run_backward(const BoxIouArguments& arguments, const Tensor& gradient, Tensor& grad1, Tensor& grad2) {
  check_launch(launch_box_iou_backward<T>(arguments.kind, read<T>(gradient), read<T>(arguments.boxes1),
                                          read<T>(arguments.boxes2), write<T>(grad1), write<T>(grad2), arguments.batch,
                                          arguments.n, arguments.m, current_stream(grad1)),
               "box_iou_backward");
}

Tensor box_iou_cuda(Tensor boxes1, Tensor boxes2, int64_t kind) {
  const torch::stable::accelerator::DeviceGuard guard(boxes1.get_device_index());
  const auto arguments = BoxIouArguments::check(boxes1, boxes2, kind);
  Tensor out = torch::stable::new_empty(boxes1, {arguments.batch, arguments.n, arguments.m});
  boxes1.scalar_type() == ScalarType::Float ? run<float>(arguments, out) : run<double>(arguments, out);
  return out;
}

std::tuple<Tensor, Tensor> box_iou_backward_cuda(Tensor grad, Tensor boxes1, Tensor boxes2, int64_t kind) {
  const torch::stable::accelerator::DeviceGuard guard(boxes1.get_device_index());
  const auto arguments = BoxIouArguments::check(boxes1, boxes2, kind);
  const Tensor gradient = arguments.check_gradient(grad);
  Tensor grad1 = torch::stable::new_empty(boxes1, boxes1.sizes());
  Tensor grad2 = torch::stable::new_empty(boxes2, boxes2.sizes());
  boxes1.scalar_type() == ScalarType::Float ? run_backward<float>(arguments, gradient, grad1, grad2)
                                            : run_backward<double>(arguments, gradient, grad1, grad2);
  return {grad1, grad2};
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CUDA, m) {
  m.impl("box_iou", TORCH_BOX(&libra::box_iou_cuda));
  m.impl("box_iou_backward", TORCH_BOX(&libra::box_iou_backward_cuda));
}
