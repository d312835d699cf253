// match_boxes on torch tensors of the CPU: checks, allocates, and calls match_boxes_cpu_kernel.cpp.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "match_boxes/match_boxes_check.h"
#include "match_boxes/match_boxes_cpu_kernel.h"

namespace libra {
namespace {

std::tuple<Tensor, Tensor, Tensor> match_boxes_cpu(Tensor boxes, Tensor targets, Tensor valid,
                                                   std::optional<Tensor> crowd, double positive_iou,
                                                   double negative_iou, std::optional<double> min_positive_iou) {
  const auto a = MatchArguments::check(boxes, targets, valid, crowd, positive_iou, negative_iou, min_positive_iou);
  MatchOutputs outputs = a.outputs();
  match_boxes({read<Box<float>>(a.boxes), read<Box<float>>(a.targets), read<uint8_t>(a.valid),
               a.crowd ? read<Box<float>>(*a.crowd) : nullptr, a.batch, a.boxes_per_image, a.targets_per_image,
               a.crowd_per_image, a.shared_boxes, a.rules},
              {write<int64_t>(outputs.index), write<float>(outputs.iou), write<signed char>(outputs.state)},
              torch_threads);
  return {outputs.index, outputs.iou, outputs.state};
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CPU, m) { m.impl("match_boxes", TORCH_BOX(&libra::match_boxes_cpu)); }
