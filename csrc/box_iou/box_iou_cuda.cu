// box_iou and its backward on the GPU: check, allocate, launch, register.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "box_iou/box_iou_backward_kernel.cuh"
#include "box_iou/box_iou_check.h"
#include "box_iou/box_iou_kernel.cuh"
#include "common/cuda_launch.h"

namespace libra {
namespace {

GpuSize gpu_size(const Tensor& tensor) {
  GpuSize size{};
  const int device = tensor.get_device_index();
  check_launch(cudaDeviceGetAttribute(&size.multiprocessors, cudaDevAttrMultiProcessorCount, device), "box_iou");
  check_launch(cudaDeviceGetAttribute(&size.threads_per_multiprocessor, cudaDevAttrMaxThreadsPerMultiProcessor, device),
               "box_iou");
  return size;
}

template <class T>
void run(const BoxIouArguments& arguments, Tensor& out) {
  check_launch(launch_box_iou<T>(arguments.kind, read<T>(arguments.boxes1), read<T>(arguments.boxes2), write<T>(out),
                                 arguments.batch, arguments.n, arguments.m, gpu_size(out), current_stream(out)),
               "box_iou");
}

template <class T>
void run_backward(const BoxIouArguments& a, const Tensor& gradient, Tensor& grad1, Tensor& grad2) {
  const SlopePlan plan = plan_slopes<T>(a.batch, a.n, a.m);
  std::optional<Tensor> partial1, partial2;
  if (const int64_t boxes = slope_partials1(plan, a.batch, a.n)) {
    partial1 = make_empty(grad1, {boxes, 4});
  }
  if (const int64_t boxes = slope_partials2(plan, a.batch, a.m)) {
    partial2 = make_empty(grad2, {boxes, 4});
  }
  check_launch(
      launch_box_iou_backward<T>(a.kind, read<T>(gradient), read<T>(a.boxes1), read<T>(a.boxes2), write<T>(grad1),
                                 write<T>(grad2), partial1 ? write<T>(*partial1) : nullptr,
                                 partial2 ? write<T>(*partial2) : nullptr, a.batch, a.n, a.m, current_stream(grad1)),
      "box_iou_backward");
}

Tensor box_iou_cuda(Tensor boxes1, Tensor boxes2, int64_t kind) {
  const torch::stable::accelerator::DeviceGuard guard(boxes1.get_device_index());
  const auto arguments = BoxIouArguments::check(boxes1, boxes2, kind);
  Tensor out = make_empty(boxes1, {arguments.batch, arguments.n, arguments.m});
  boxes1.scalar_type() == ScalarType::Float ? run<float>(arguments, out) : run<double>(arguments, out);
  return out;
}

std::tuple<Tensor, Tensor> box_iou_backward_cuda(Tensor grad, Tensor boxes1, Tensor boxes2, int64_t kind) {
  const torch::stable::accelerator::DeviceGuard guard(boxes1.get_device_index());
  const auto arguments = BoxIouArguments::check(boxes1, boxes2, kind);
  const Tensor gradient = arguments.check_gradient(grad);
  Tensor grad1 = make_empty(boxes1, boxes1.sizes());
  Tensor grad2 = make_empty(boxes2, boxes2.sizes());
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
