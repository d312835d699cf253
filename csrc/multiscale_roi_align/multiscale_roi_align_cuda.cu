// multiscale_roi_align and its backward on the GPU: check, allocate, launch, register.
#include <torch/csrc/stable/library.h>

#include "common/cuda_launch.h"
#include "multiscale_roi_align/multiscale_roi_align_backward_kernel.cuh"
#include "multiscale_roi_align/multiscale_roi_align_check.h"

namespace libra {
namespace {

// f(S{}) with the type of the features.
template <class F>
cudaError_t with_stored_type(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(__half{});
    case ScalarType::BFloat16:
      return f(__nv_bfloat16{});
    default:
      return f(float{});
  }
}

void check_grid(const RoiAlignArguments& a, int64_t channels) {
  STD_TORCH_CHECK(a.batch * a.slots < (int64_t{1} << 31), "boxes: expected less than 2^31 of them, got ",
                  a.batch * a.slots);
  STD_TORCH_CHECK(channels <= 65535 * kRoiChunk, "features: expected at most ", 65535 * kRoiChunk, " channels, got ",
                  channels);
}

Tensor multiscale_roi_align_cuda(std::vector<Tensor> features, Tensor boxes, std::optional<Tensor> valid,
                                 std::vector<double> strides, int64_t output_size, int64_t sampling_ratio,
                                 double finest_scale) {
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const auto a = RoiAlignForward::check(features, boxes, valid, strides, output_size, sampling_ratio, finest_scale);
  check_grid(a, a.channels);
  Tensor pooled = a.make_pooled();
  const auto error = with_stored_type(pooled.scalar_type(), [&](auto stored) {
    using S = decltype(stored);
    return launch_multiscale_roi_align<S>(a.maps<S>(), read<typename RoiNumber<S>::type>(a.boxes), a.valid_data(),
                                          write<S>(pooled), a.batch, a.slots, a.channels, a.rules,
                                          current_stream(pooled));
  });
  check_launch(error, "multiscale_roi_align");
  return pooled;
}

std::vector<Tensor> multiscale_roi_align_backward_cuda(Tensor grad, Tensor boxes, std::optional<Tensor> valid,
                                                       std::vector<int64_t> heights, std::vector<int64_t> widths,
                                                       std::vector<bool> channels_last, std::vector<bool> wanted,
                                                       std::vector<double> strides, int64_t output_size,
                                                       int64_t sampling_ratio, double finest_scale) {
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  auto a = RoiAlignBackward::check(grad, boxes, valid, heights, widths, channels_last, wanted, strides, output_size,
                                   sampling_ratio, finest_scale);
  check_grid(a, a.channels);
  const auto error = with_stored_type(grad.scalar_type(), [&](auto stored) {
    using S = decltype(stored);
    return launch_multiscale_roi_align_backward<S>(read<S>(a.gradient), read<typename RoiNumber<S>::type>(a.boxes),
                                                   a.valid_data(), a.maps<S>(), a.batch, a.slots, a.channels, a.rules,
                                                   current_stream(grad));
  });
  check_launch(error, "multiscale_roi_align_backward");
  return a.gradients;
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CUDA, m) {
  m.impl("multiscale_roi_align", TORCH_BOX(&libra::multiscale_roi_align_cuda));
  m.impl("multiscale_roi_align_backward", TORCH_BOX(&libra::multiscale_roi_align_backward_cuda));
}
