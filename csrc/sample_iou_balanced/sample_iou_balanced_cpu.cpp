// sample_iou_balanced on torch tensors of the CPU: checks, allocates, and calls sample_iou_balanced_cpu_kernel.cpp.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "sample_iou_balanced/sample_iou_balanced_check.h"
#include "sample_iou_balanced/sample_iou_balanced_cpu_kernel.h"

namespace libra {
namespace {

std::tuple<Tensor, Tensor, Tensor> sample_iou_balanced_cpu(Tensor index, Tensor iou, Tensor state, Tensor seed,
                                                           int64_t num_samples, int64_t max_positives, int64_t num_bins,
                                                           double low, double high,
                                                           std::optional<double> max_negatives_per_positive,
                                                           bool instance_balanced, bool published) {
  const auto a = SampleArguments::check(index, iou, state, seed, num_samples, max_positives, num_bins, low, high,
                                        max_negatives_per_positive, instance_balanced, published);
  auto [samples, valid, positive] = a.outputs();
  sample_iou_balanced({read<int64_t>(a.index), read<float>(a.iou), read<signed char>(a.state),
                       static_cast<uint64_t>(*read<int64_t>(a.seed)), a.images, a.candidates},
                      a.options, {write<int64_t>(samples), write<bool>(valid), write<bool>(positive)}, torch_threads);
  return {samples, valid, positive};
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CPU, m) {
  m.impl("sample_iou_balanced", TORCH_BOX(&libra::sample_iou_balanced_cpu));
}
