// sample_iou_balanced on the GPU: check, allocate, launch, register.
#include <torch/csrc/stable/library.h>

#include "common/cuda_launch.h"
#include "sample_iou_balanced/sample_iou_balanced_check.h"
#include "sample_iou_balanced/sample_iou_balanced_kernel.cuh"

namespace libra {
namespace {

std::tuple<Tensor, Tensor, Tensor> sample_iou_balanced_cuda(Tensor index, Tensor iou, Tensor state, Tensor seed,
                                                            int64_t num_samples, int64_t max_positives,
                                                            int64_t num_bins, double low, double high,
                                                            std::optional<double> max_negatives_per_positive,
                                                            bool instance_balanced, bool published) {
  const torch::stable::accelerator::DeviceGuard guard(index.get_device_index());
  const auto arguments = SampleArguments::check(index, iou, state, seed, num_samples, max_positives, num_bins, low,
                                                high, max_negatives_per_positive, instance_balanced, published);
  auto [samples, valid, positive] = arguments.outputs();
  const int64_t images = arguments.images, n = arguments.candidates;
  const bool deals = arguments.options.instance_balanced, sifts = sample_sifts(n, arguments.options);
  const int64_t sifted = sifts ? images : 0, chunks = SampleShape::make(n).chunks;
  Tensor group = torch::stable::new_empty(index, {images, n}, ScalarType::Byte);
  Tensor word = torch::stable::new_empty(index, {images, n}, ScalarType::Int);
  Tensor items = torch::stable::new_empty(index, {deals ? images : 0, n, 2}, ScalarType::Long);
  Tensor highest = torch::stable::new_empty(index, {sifted, chunks}, ScalarType::Float);
  Tensor counts = torch::stable::new_empty(index, {sifted, chunks, kMaxGroups}, ScalarType::Int);
  Tensor list = torch::stable::new_empty(index, {sifted, kItems}, ScalarType::Long);
  Tensor length = torch::stable::new_empty(index, {sifted}, ScalarType::Int);
  const SampleWorkspace workspace{write<uint8_t>(group),  write<uint32_t>(word),   write<SortItem>(items),
                                  write<float>(highest),  write<uint32_t>(counts), write<uint64_t>(list),
                                  write<uint32_t>(length)};
  check_launch(launch_sample_iou_balanced({read<int64_t>(arguments.index), read<float>(arguments.iou),
                                           read<int8_t>(arguments.state), read<int64_t>(arguments.seed)},
                                          images, n, arguments.options, workspace,
                                          {write<int64_t>(samples), write<bool>(valid), write<bool>(positive)},
                                          current_stream(index)),
               "sample_iou_balanced");
  return {samples, valid, positive};
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CUDA, m) {
  m.impl("sample_iou_balanced", TORCH_BOX(&libra::sample_iou_balanced_cuda));
}
