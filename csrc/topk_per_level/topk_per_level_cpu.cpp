// topk_per_level on torch tensors of the CPU: checks, allocates, and calls topk_per_level_cpu_kernel.cpp.
#include <torch/csrc/stable/library.h>

#include "topk_per_level/topk_per_level_check.h"
#include "topk_per_level/topk_per_level_cpu_kernel.h"

namespace libra {
namespace {

std::tuple<Tensor, Tensor> topk_per_level_cpu(Tensor scores, std::vector<int64_t> level_sizes, int64_t k,
                                              std::optional<double> threshold) {
  const auto a = TopkArguments::check(scores, level_sizes, k, threshold);
  auto [values, index] = a.outputs();
  int64_t* to = write<int64_t>(index);
  with_format(scores.scalar_type(), [&, &values = values](auto format) {
    using F = decltype(format);
    topk_per_level<F>(read<typename F::Bits>(a.scores), a.images, a.levels, a.lowest<F>(), kMinusInfinity<F>,
                      write<typename F::Bits>(values), to, torch_threads);
  });
  return {values, index};
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CPU, m) { m.impl("topk_per_level", TORCH_BOX(&libra::topk_per_level_cpu)); }
