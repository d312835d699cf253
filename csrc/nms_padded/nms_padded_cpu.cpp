// nms_padded on torch tensors of the CPU: checks, allocates, and calls nms_padded_cpu_kernel.cpp.
#include <torch/csrc/stable/library.h>

#include "nms_padded/nms_padded_check.h"
#include "nms_padded/nms_padded_cpu_kernel.h"

namespace libra {
namespace {

std::tuple<Tensor, Tensor> nms_padded_cpu(Tensor boxes, Tensor scores, std::optional<Tensor> groups,
                                          double iou_threshold, int64_t max_output,
                                          std::optional<double> score_threshold, std::optional<Tensor> valid) {
  const auto a = NmsArguments::check(boxes, scores, groups, iou_threshold, max_output, score_threshold, valid);
  auto [index, found] = a.outputs();
  nms_padded({read<Box<float>>(a.boxes), read<float>(a.scores), a.groups ? read<int64_t>(*a.groups) : nullptr,
              a.valid ? read<uint8_t>(*a.valid) : nullptr, a.batch, a.slots},
             a.rules, {write<int64_t>(index), write<bool>(found)}, torch_threads);
  return {index, found};
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CPU, m) { m.impl("nms_padded", TORCH_BOX(&libra::nms_padded_cpu)); }
