// multiscale_roi_align and its backward on torch tensors of the CPU: checks, allocates, and calls
// multiscale_roi_align_cpu_kernel.cpp.
#include <torch/csrc/stable/library.h>

#include "multiscale_roi_align/multiscale_roi_align_check.h"
#include "multiscale_roi_align/multiscale_roi_align_cpu_kernel.h"

namespace libra {
namespace {

// f(S{}) with the type of the features.
template <class F>
void with_stored_type(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      return f(float{});
  }
}

Tensor multiscale_roi_align_cpu(std::vector<Tensor> features, Tensor boxes, std::optional<Tensor> valid,
                                std::vector<double> strides, int64_t output_size, int64_t sampling_ratio,
                                double finest_scale) {
  const auto a = RoiAlignForward::check(features, boxes, valid, strides, output_size, sampling_ratio, finest_scale);
  Tensor pooled = a.make_pooled();
  with_stored_type(pooled.scalar_type(), [&](auto stored) {
    using S = decltype(stored);
    multiscale_roi_align<S>(a.maps<S>(), read<typename RoiNumber<S>::type>(a.boxes), a.valid_data(), write<S>(pooled),
                            a.batch, a.slots, a.channels, a.rules, torch_threads);
  });
  return pooled;
}

std::vector<Tensor> multiscale_roi_align_backward_cpu(Tensor grad, Tensor boxes, std::optional<Tensor> valid,
                                                      std::vector<int64_t> heights, std::vector<int64_t> widths,
                                                      std::vector<bool> channels_last, std::vector<bool> wanted,
                                                      std::vector<double> strides, int64_t output_size,
                                                      int64_t sampling_ratio, double finest_scale) {
  auto a = RoiAlignBackward::check(grad, boxes, valid, heights, widths, channels_last, wanted, strides, output_size,
                                   sampling_ratio, finest_scale);
  with_stored_type(grad.scalar_type(), [&](auto stored) {
    using S = decltype(stored);
    multiscale_roi_align_backward<S>(read<S>(a.gradient), read<typename RoiNumber<S>::type>(a.boxes), a.valid_data(),
                                     a.maps<S>(), a.batch, a.slots, a.channels, a.rules, torch_threads);
  });
  return a.gradients;
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CPU, m) {
  m.impl("multiscale_roi_align", TORCH_BOX(&libra::multiscale_roi_align_cpu));
  m.impl("multiscale_roi_align_backward", TORCH_BOX(&libra::multiscale_roi_align_backward_cpu));
}
