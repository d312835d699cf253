// nms_padded on the GPU: check, allocate, launch, sort by torch, launch, register.
#include <torch/csrc/stable/library.h>

#include <array>

#include "common/cuda_launch.h"
#include "nms_padded/nms_padded_check.h"
#include "nms_padded/nms_padded_kernel.cuh"

namespace libra {
namespace {

// torch.sort(keys, stable=True): the sorted keys, and from where they came.
std::tuple<Tensor, Tensor> sort(const Tensor& keys) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(keys), from(std::optional<bool>(true)), from(int64_t{0}), from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// Boxes are read 16 bytes at a time; a view may begin anywhere.
Tensor aligned(const Tensor& boxes) {
  return reinterpret_cast<uintptr_t>(boxes.const_data_ptr()) % 16 ? torch::stable::clone(boxes) : boxes;
}

std::tuple<Tensor, Tensor> nms_padded_cuda(Tensor boxes, Tensor scores, std::optional<Tensor> groups,
                                           double iou_threshold, int64_t max_output,
                                           std::optional<double> score_threshold, std::optional<Tensor> valid) {
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const auto a = NmsArguments::check(boxes, scores, groups, iou_threshold, max_output, score_threshold, valid);
  auto [index, found] = a.outputs();
  if (a.batch == 0 || a.rules.max_output == 0) return {index, found};
  STD_TORCH_CHECK(a.batch <= std::numeric_limits<int32_t>::max() / a.slots,
                  "boxes: expected at most 2^31 - 1 of all images, got ", a.batch, " images of ", a.slots);
  const NmsShape shape = NmsShape::make(a.batch, a.slots);
  const cudaStream_t stream = current_stream(boxes);
  const Tensor whole_boxes = aligned(a.boxes);
  const NmsTensors tensors{read<Box<float>>(whole_boxes), read<float>(a.scores),
                           a.groups ? read<int64_t>(*a.groups) : nullptr, a.valid ? read<uint8_t>(*a.valid) : nullptr};
  Tensor keys = make_empty(boxes, {int64_t{shape.total}}, ScalarType::Long);
  Tensor kept = make_empty(boxes, {int64_t{shape.total}, 4});
  check_launch(launch_nms_keys(tensors, shape, a.rules, write<int64_t>(keys), stream), "nms_padded");
  const auto [sorted_keys, order] = sort(keys);
  // What was sorted is not needed any more: its memory takes the survivors.
  const NmsSorted sorted{read<int64_t>(sorted_keys), read<int64_t>(order),
                         reinterpret_cast<uint64_t*>(write<int64_t>(keys)), write<Box<float>>(kept)};
  check_launch(
      launch_nms_padded(tensors, a.batch, shape, a.rules, sorted, {write<int64_t>(index), write<bool>(found)}, stream),
      "nms_padded");
  return {index, found};
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CUDA, m) { m.impl("nms_padded", TORCH_BOX(&libra::nms_padded_cuda)); }
