// topk_per_level on the GPU: check, allocate, launch, register.
#include <torch/csrc/stable/library.h>

#include "common/cuda_launch.h"
#include "topk_per_level/topk_per_level_check.h"
#include "topk_per_level/topk_per_level_kernel.cuh"

namespace libra {
namespace {

std::tuple<Tensor, Tensor> topk_per_level_cuda(Tensor scores, std::vector<int64_t> level_sizes, int64_t k,
                                               std::optional<double> threshold) {
  const torch::stable::accelerator::DeviceGuard guard(scores.get_device_index());
  const auto a = TopkArguments::check(scores, level_sizes, k, threshold);
  const int64_t blocks = TopkPlan::make(a.levels, 0).blocks(a.images);
  STD_TORCH_CHECK(blocks <= INT32_MAX, "scores: expected what takes at most 2^31 - 1 blocks, of about ", kChunk,
                  " scores of a level, got ", a.images, " images of ", a.levels.count, " levels, which take ", blocks,
                  "; pass fewer images at a time");
  auto [values, index] = a.outputs();
  int64_t* to = write<int64_t>(index);
  with_format(scores.scalar_type(), [&, &values = values](auto format) {
    using F = decltype(format);
    const TopkPlan plan = TopkPlan::make(a.levels, a.lowest<F>());
    const int64_t groups = a.images * a.levels.count, open_groups = a.images * plan.open_levels;
    Tensor counters = make_empty(a.scores, {kPasses, open_groups, kBuckets}, ScalarType::Int);
    Tensor states = make_empty(a.scores, {kPasses + 1, open_groups, sizeof(TopkState) / 8}, ScalarType::Long);
    Tensor list = make_empty(a.scores, {a.images, plan.listed()}, ScalarType::Long);
    Tensor lengths = make_empty(a.scores, {2, groups}, ScalarType::Int);
    const TopkWorkspace workspace{write<uint32_t>(counters), write<TopkState>(states), write<uint64_t>(list),
                                  write<uint32_t>(lengths)};
    check_launch(launch_topk_per_level<F>(read<typename F::Bits>(a.scores), a.images, plan, workspace,
                                          write<typename F::Bits>(values), to, current_stream(a.scores)),
                 "topk_per_level");
  });
  return {values, index};
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CUDA, m) { m.impl("topk_per_level", TORCH_BOX(&libra::topk_per_level_cuda)); }
