// match_boxes on the GPU: check, allocate, launch, register.
#include <torch/csrc/stable/library.h>

#include "common/cuda_launch.h"
#include "match_boxes/match_boxes_check.h"
#include "match_boxes/match_boxes_kernel.cuh"

namespace libra {
namespace {

// Boxes are read 16 bytes at a time; a view may begin anywhere.
Tensor aligned(const Tensor& boxes) {
  return reinterpret_cast<uintptr_t>(boxes.const_data_ptr()) % 16 ? torch::stable::clone(boxes) : boxes;
}

std::tuple<Tensor, Tensor, Tensor> match_boxes_cuda(Tensor boxes, Tensor targets, Tensor valid,
                                                    std::optional<Tensor> crowd, double positive_iou,
                                                    double negative_iou, std::optional<double> min_positive_iou) {
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const auto arguments =
      MatchArguments::check(boxes, targets, valid, crowd, positive_iou, negative_iou, min_positive_iou);
  MatchOutputs outputs = arguments.outputs();
  const int each = MatchShape::choose_boxes_per_thread(arguments.batch, arguments.boxes_per_image);
  const MatchShape shape = MatchShape::make(arguments.batch, arguments.boxes_per_image, arguments.targets_per_image,
                                            arguments.crowd_per_image, arguments.shared_boxes, each);
  const bool low_quality = arguments.rules.low_quality;
  Tensor tops = torch::stable::new_empty(boxes, {low_quality ? shape.tops() : 0}, ScalarType::Int);
  const Tensor whole_boxes = aligned(arguments.boxes), whole_targets = aligned(arguments.targets);
  const std::optional<Tensor> whole_crowd = arguments.crowd ? std::optional(aligned(*arguments.crowd)) : std::nullopt;
  const MatchTensors tensors{read<Box<float>>(whole_boxes),
                             read<Box<float>>(whole_targets),
                             whole_crowd ? read<Box<float>>(*whole_crowd) : nullptr,
                             read<uint8_t>(arguments.valid),
                             write<int64_t>(outputs.index),
                             write<float>(outputs.iou),
                             write<signed char>(outputs.state),
                             reinterpret_cast<unsigned*>(write<int32_t>(tops))};
  check_launch(launch_match_boxes(tensors, shape, arguments.rules, current_stream(arguments.boxes)), "match_boxes");
  return {outputs.index, outputs.iou, outputs.state};
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CUDA, m) { m.impl("match_boxes", TORCH_BOX(&libra::match_boxes_cuda)); }
