// box_iou and its backward on torch tensors of the CPU: checks, allocates, and calls box_iou_cpu_kernel.cpp.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "box_iou/box_iou_check.h"
#include "box_iou/box_iou_cpu_kernel.h"
#include "common/allocate.h"

namespace libra {
namespace {

template <class T>
void forward(const BoxIouArguments& a, Tensor& overlaps) {
  box_iou(a.kind, read<Box<T>>(a.boxes1), read<Box<T>>(a.boxes2), write<T>(overlaps), a.batch, a.n, a.m, torch_threads);
}

template <class T>
void backward(const BoxIouArguments& a, const Tensor& gradient, Tensor& grad1, Tensor& grad2) {
  box_iou_backward(a.kind, read<T>(gradient), read<Box<T>>(a.boxes1), read<Box<T>>(a.boxes2), write<Box<T>>(grad1),
                   write<Box<T>>(grad2), a.batch, a.n, a.m, torch_threads);
}

Tensor box_iou_cpu(Tensor boxes1, Tensor boxes2, int64_t kind) {
  const auto arguments = BoxIouArguments::check(boxes1, boxes2, kind);
  Tensor overlaps = make_empty(boxes1, {arguments.batch, arguments.n, arguments.m});
  boxes1.scalar_type() == ScalarType::Float ? forward<float>(arguments, overlaps)
                                            : forward<double>(arguments, overlaps);
  return overlaps;
}

std::tuple<Tensor, Tensor> box_iou_backward_cpu(Tensor grad, Tensor boxes1, Tensor boxes2, int64_t kind) {
  const auto arguments = BoxIouArguments::check(boxes1, boxes2, kind);
  const Tensor gradient = arguments.check_gradient(grad);
  Tensor grad1 = make_empty(boxes1, boxes1.sizes());
  Tensor grad2 = make_empty(boxes2, boxes2.sizes());
  boxes1.scalar_type() == ScalarType::Float ? backward<float>(arguments, gradient, grad1, grad2)
                                            : backward<double>(arguments, gradient, grad1, grad2);
  return {grad1, grad2};
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CPU, m) {
  m.impl("box_iou", TORCH_BOX(&libra::box_iou_cpu));
  m.impl("box_iou_backward", TORCH_BOX(&libra::box_iou_backward_cpu));
}
